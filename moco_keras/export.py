"""SavedModels of trained encoders, for TensorFlow Serving and others."""

import json
import shutil
import uuid
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from moco_keras import arguments, card, encoders, image_files, portable, warmup

_OUTPUTS = ("features", "projection")


def export_encoder(
    model,
    path,
    version=None,
    *,
    output="features",
    normalize=False,
    format=None,
    training=None,
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

    Beside it are `encoder.keras`, the same for fine-tuning, and what is known
    of it: `encoder.json`, and `README.md` made from that. Where the package
    tensorflow-serving-api is installed, there are requests in `assets.extra`
    with which a server warms up. If told so, there is also a file for another
    runtime, `encoder.onnx` or `encoder.tflite`, of which `images` is the input
    and `embedding` the output, and whose arithmetic is float32.

    Args:
        model: a `MoCo`, or an encoder from `build_encoder`.
        path: folder of all versions.
        version: number of this one, 1 or more; by default the one after the
            highest.
        output: "features", those of the backbone, or "projection", what the
            loss compares.
        normalize: whether to divide each embedding by its length.
        format: another to write too: "onnx", for ONNX Runtime, which needs the
            package tf2onnx, or "litert", for LiteRT, which was called
            TensorFlow Lite.
        training: what to record of the training: settings, data, metrics; a
            dict of what JSON can hold.

    Returns:
        The version's folder, a `Path`.

    Raises:
        FileExistsError: if the version exists.
        ImportError: if the format's converter is not installed.
        ValueError: if an argument is none of the above, or the encoder does not
            take square RGB images of one size, or it is not known whether their
            pixels are in [0, 255], or its backbone cannot be told from its
            head, or Keras does not know one of its layers.
    """
    encoder = getattr(model, "query_encoder", model)
    size = _image_size(encoder)
    if output not in _OUTPUTS:
        raise ValueError(
            f"`output` must be one of {', '.join(_OUTPUTS)}. "
            f"Received: output={output!r}."
        )
    if version is not None:
        version = arguments.whole(version=version)
    if format is not None:
        portable.check(format)
    path = Path(path)
    if version is not None and (path / str(version)).exists():
        raise _exists(path / str(version))
    backbone = encoders.backbone(encoder)
    if output == "features":
        encoder = backbone
    elif len(encoder.layers) == len(backbone.layers):
        raise ValueError(
            'An encoder to export with output="projection" must have a head. '
            f"Received: {encoder!r}, which ends with its features."
        )
    training = _json(training or {})
    path.mkdir(parents=True, exist_ok=True)
    # A server looks at names that are numbers only.
    partial = path / f".partial-{uuid.uuid4().hex}"
    try:
        signatures = _write_saved_model(encoder, size, normalize, partial)
        warmup.write(partial, size)
        _write_keras(encoder, partial / "encoder.keras")
        if format is not None:
            float32 = portable.in_float32(encoder)
            embed = _embedder(float32, normalize)
            images = signatures["serving_default"][0]["images"]
            portable.write(float32, embed, images, format, partial)
        card.write(
            partial,
            path.resolve().name,
            signatures=signatures,
            output=output,
            normalized=normalize,
            file=portable.FILES.get(format),
            training=training,
        )
        return _name(partial, path, version)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _embedder(encoder, normalize):
    """A function of images (N, S, S, 3), of any dtype, that a graph holds."""

    def embed(images):
        embedding = encoder(tf.cast(images, "float32"), training=False)
        embedding = tf.cast(embedding, "float32")
        if normalize:
            embedding = tf.math.l2_normalize(embedding, axis=1)
        return {"embedding": embedding}

    return embed


def _write_saved_model(encoder, size, normalize, folder):
    """Returns its signatures, as `card.write` takes them."""
    from moco_keras import augmentations  # slow to import

    evaluation = augmentations.evaluation(size)
    embed = _embedder(encoder, normalize)

    def decode(contents):
        return evaluation(image_files.decode(contents)[None])[0]

    def serve_encoded(contents):
        image = tf.TensorSpec((size, size, 3), "float32")
        return embed(tf.map_fn(decode, contents, fn_output_signature=image))

    images = tf.TensorSpec((None, size, size, 3), "uint8", name="images")
    contents = tf.TensorSpec((None,), "string", name="image_bytes")
    embedding = tf.TensorSpec((None, encoder.output_shape[1]), "float32")
    archive = keras.export.ExportArchive()
    archive.track(encoder)
    archive.add_endpoint("serving_default", embed, [images])
    archive.add_endpoint("serve_encoded", serve_encoded, [contents])
    archive.write_out(str(folder), verbose=False)
    outputs = {"embedding": embedding}
    return {
        "serving_default": ({"images": images}, outputs),
        "serve_encoded": ({"image_bytes": contents}, outputs),
    }


def _write_keras(encoder, path):
    """For fine-tuning; reads it back, for others must be able to."""
    encoder.save(path)
    try:
        keras.models.load_model(path)
    except (TypeError, ValueError) as error:
        cause = error
        while cause.__context__ is not None:  # of the model, of its part, ...
            cause = cause.__context__
        raise ValueError(
            "An encoder to export must be of layers that Keras can load. "
            f"Received one that it cannot: {str(cause).partition('. ')[0]}. "
            "Put `@keras.saving.register_keras_serializable()` before the "
            "class of each layer of your own, and give it a `get_config`."
        ) from error


def _json(training):
    try:
        return json.loads(json.dumps(training, default=_plain))
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`training` must be a dict of numbers, texts, lists and dicts. "
            f"Received: {error}."
        ) from error


def _plain(number):
    if not isinstance(number, np.generic):
        raise TypeError(f"{number!r}, which JSON cannot hold")
    return number.item()


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
    if not encoders.takes_pixels(encoder):
        raise ValueError(
            "An encoder to export must take pixels in [0, 255], and normalise "
            f"them itself. Received: {encoder!r}, whose range is unknown. "
            "Build it with `build_encoder`, which takes any functional Keras "
            "model as `backbone`."
        )
    return shape[1]


def _name(partial, path, version):
    """Gives a written version its number, which nobody else has."""
    while True:
        folder = path / str(version or 1 + max(_versions(path), default=0))
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


def load_encoder(path, version=None, *, encoded=False):
    """Loads what `export_encoder` wrote, as a frozen Keras layer.

    The layer is a function of images, and a part for other models:

        encoder = load_encoder("saved_models/my_encoder")
        embeddings = encoder(images)

        inputs = keras.Input((32, 32, 3), dtype="uint8")
        outputs = keras.layers.Dense(10)(encoder(inputs))

    To train the encoder too, load `encoder.keras` from the version's folder
    with `keras.models.load_model`.

    Args:
        path: folder of all versions, or of one.
        version: number of one; by default the highest.
        encoded: whether the layer takes image files, string (N,), instead of
            images, uint8 (N, S, S, 3).

    Returns:
        A `keras.layers.TFSMLayer` that returns embeddings, float32 (N, D).

    Raises:
        FileNotFoundError: if there is no such version.
    """
    path = Path(path)
    folder = path
    if version is not None:
        folder = path / str(version)
    elif not _is_saved_model(path):
        folder = path / str(max(_versions(path), default=""))
    if not _is_saved_model(folder):
        raise FileNotFoundError(
            "`path` must be a folder that `export_encoder` wrote, and "
            f"`version` one of those in it. Received: path={path}, "
            f"version={version}. There are {sorted(_versions(path)) or 'none'}."
        )
    endpoint = "serve_encoded" if encoded else "serving_default"
    return _FrozenEncoder(str(folder), endpoint, trainable=False)


class _FrozenEncoder(keras.layers.TFSMLayer):
    def call(self, inputs, training=False):
        return super().call(inputs)["embedding"]


def _is_saved_model(folder):
    return (folder / "saved_model.pb").is_file()


def _versions(path):
    if not path.is_dir():
        return []
    return [int(p.name) for p in path.iterdir() if p.name.isdecimal()]
