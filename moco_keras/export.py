"""SavedModels of trained encoders, for TensorFlow Serving and others."""

import shutil
import uuid
from pathlib import Path

import keras
import tensorflow as tf

from moco_keras import encoders, image_files

_OUTPUTS = ("features", "projection")


def export_encoder(
    model, path, version=None, *, output="features", normalize=False
):
    """Writes a query encoder as a new version of a SavedModel.

    The version is the folder `path/<version>`, as TensorFlow Serving wants it,
    and appears when it is whole. It takes plain images, and loads without Keras
    and without this library:

        encoder = tf.saved_model.load("path/1").signatures["serving_default"]
        encoder(images=images)["embedding"]  # uint8 (N, S, S, 3) -> (N, D)

    It has two signatures, which both return `embedding`, float32 (N, D):

    - `serving_default` takes `images`, uint8 (N, S, S, 3), of the encoder's
      size.
    - `serve_encoded` takes `image_bytes`, string (N,): JPEG, PNG or BMP files,
      or GIFs, of which it takes the first picture, of up to 50 million pixels.
      It brings them to the encoder's size as `augmentations.evaluation` does,
      and fails with `InvalidArgument` if one of them is something else.

    Args:
        model: a `MoCo`, or an encoder from `build_encoder`.
        path: folder of all versions.
        version: number of this one, 1 or more; by default the one after the
            highest.
        output: "features", those of the backbone, or "projection", what the
            loss compares.
        normalize: whether to divide each embedding by its length.

    Returns:
        The version's folder, a `Path`.

    Raises:
        FileExistsError: if the version exists.
        ValueError: if an argument is none of the above, or the encoder does not
            take square RGB images of one size, or its backbone cannot be told
            from its head.
    """
    encoder = getattr(model, "query_encoder", model)
    size = _image_size(encoder)
    if output not in _OUTPUTS:
        raise ValueError(
            f"`output` must be one of {', '.join(_OUTPUTS)}. "
            f"Received: output={output!r}."
        )
    if version is not None and (type(version) is not int or version < 1):
        raise ValueError(
            "`version` must be a whole number, 1 or more. "
            f"Received: version={version!r}."
        )
    path = Path(path)
    if version is not None and (path / str(version)).exists():
        raise _exists(path / str(version))
    if output == "features":
        encoder = encoders.backbone(encoder)
    path.mkdir(parents=True, exist_ok=True)
    # A server looks at names that are numbers only.
    partial = path / f".partial-{uuid.uuid4().hex}"
    try:
        _archive(encoder, size, normalize).write_out(
            str(partial), verbose=False
        )
        return _name(partial, path, version)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _archive(encoder, size, normalize):
    """Both signatures, ready to be written."""
    from moco_keras import augmentations  # slow to import

    evaluation = augmentations.evaluation(size)

    def embed(images):
        embedding = tf.cast(encoder(images, training=False), "float32")
        if normalize:
            embedding = tf.math.l2_normalize(embedding, axis=1)
        return {"embedding": embedding}

    def decode(contents):
        return evaluation(image_files.decode(contents)[None])[0]

    def serve_encoded(contents):
        image = tf.TensorSpec((size, size, 3), "float32")
        return embed(tf.map_fn(decode, contents, fn_output_signature=image))

    archive = keras.export.ExportArchive()
    archive.track(encoder)
    archive.add_endpoint(
        "serving_default",
        lambda images: embed(tf.cast(images, "float32")),
        [tf.TensorSpec((None, size, size, 3), "uint8", name="images")],
    )
    archive.add_endpoint(
        "serve_encoded",
        serve_encoded,
        [tf.TensorSpec((None,), "string", name="image_bytes")],
    )
    return archive


def _image_size(encoder):
    shape = getattr(encoder, "input_shape", None)
    if (
        not isinstance(shape, tuple)
        or len(shape) != 4
        or None in shape[1:]
        or shape[1] != shape[2]
        or shape[3] != 3
    ):
        raise ValueError(
            "An encoder to export must take square RGB images of one size, "
            f"(N, S, S, 3). Received: {encoder!r}, which takes {shape}. Build "
            "it with `build_encoder`."
        )
    return shape[1]


def _name(partial, path, version):
    """Gives a written version its number, which nobody else has."""
    while True:
        taken = [int(p.name) for p in path.iterdir() if p.name.isdecimal()]
        folder = path / str(version or 1 + max(taken, default=0))
        try:
            return partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            if version is not None:  # made meanwhile
                raise _exists(folder) from None


def _exists(folder):
    return FileExistsError(
        f"A version must not exist yet. Received: {folder}, which does. "
        "Nothing was overwritten; choose another number, or none for the next."
    )
