"""SavedModels of trained encoders, for TensorFlow Serving and others."""

import json

import keras
import numpy as np
import tensorflow as tf

from moco_keras import arguments
from moco_keras.export import (
    model_card,
    runtimes,
    serving_signatures,
    serving_warmup,
    verification,
)
from moco_keras.models import encoders, model_state
from moco_keras.system import ownership, paths, versions

_OUTPUTS = ("features", "projection")
_NOT_WRITABLE = (
    "A folder of an encoder's versions must be one that can be written to. "
    "Received, for {place}: {reason}. Nothing was exported, and what it held "
    "before is as it was. Make it writable, make room, or choose another."
)
_TENSORFLOW_ERRORS = (
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.ResourceExhaustedError,
)


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
      size, and fails with `InvalidArgument` if they are of another.
    - `serve_encoded` takes `image_bytes`, string (N,): JPEG, PNG or BMP files,
      or the first pictures of GIFs, of up to 50 million pixels. It brings them
      to the encoder's size as `augmentations.evaluation` does, and fails with
      `InvalidArgument` if one of them is something else.

    For no images, N = 0, both return no embeddings, (0, D), and so does ONNX
    Runtime; LiteRT refuses them.

    Beside it are `encoder.keras`, the same encoder for fine-tuning, and its
    record: `encoder.json`, and `README.md` made from that. Batch norm in
    `encoder.keras` takes whole batches, of any size: splits and synchronization
    are for pre-training only. If the package tensorflow-serving-api is
    installed, there are requests in `assets.extra` with which a server warms
    up. If requested, there is also a file for another runtime, `encoder.onnx`
    or `encoder.tflite`: from `images` to `embedding`, computed in float32.

    Every part is loaded again, and must embed a batch as the encoder does,
    before the version gets its number. If an epoch of a `MoCo` was interrupted,
    batch norm's moving statistics are averaged over its replicas first.

    Args:
        model: a `MoCo`, or an encoder from `build_encoder`.
        path: folder of all versions.
        version: its number, 1 or more; by default the one after the highest.
        output: "features", those of the backbone, or "projection", what the
            loss compares.
        normalize: whether to divide each embedding by its length.
        format: a second format to write: "onnx", for ONNX Runtime, which needs
            the packages tf2onnx, onnx and onnxruntime, or "litert", for LiteRT,
            which was called TensorFlow Lite.
        training: what to record of the training run, such as settings, data and
            metrics; a dict of what JSON can hold.

    Returns:
        The version's folder, a `Path`.

    Raises:
        FileExistsError: if the version exists.
        OSError: if the folder cannot be made, or not be written to.
        ImportError: if the format's converter or runtime is not installed.
        ValueError: if an argument is not one of the above; if the encoder does
            not take square RGB images of one size, or it is not known whether
            their pixels are in [0, 255], or its backbone cannot be told from
            its head; if Keras does not know one of its layers, or the format's
            runtime one of its operations; or if a part does not return what the
            encoder does. No version is left then.
    """
    encoder = getattr(model, "query_encoder", model)
    size = _image_size(encoder)
    if output not in _OUTPUTS:
        raise ValueError(
            f"`output` must be one of {', '.join(_OUTPUTS)}. "
            f"Received: output={output!r}."
        )
    if version is not None:
        version = arguments.whole(arguments.VERSION, version=version)
    if format is not None:
        runtimes.check(format)
    path = arguments.path(path=path)
    if version is not None and (path / str(version)).exists():
        raise versions.exists(path / str(version))
    backbone = encoders.backbone(encoder)
    if output == "features":
        encoder = backbone
    elif len(encoder.layers) == len(backbone.layers):
        raise ValueError(
            'An encoder to export with output="projection" must have a head. '
            f"Received: {encoder!r}, which ends with its features."
        )
    training = _json(training or {})
    if hasattr(model, "average_statistics"):  # a `MoCo`
        model.average_statistics()
    images = np.random.default_rng(0).integers(
        0, 256, (3, size, size, 3), "uint8"
    )
    # A server looks at names that are numbers only.
    with (
        paths.readable_write_errors(path, _NOT_WRITABLE, _TENSORFLOW_ERRORS),
        ownership.made(path),
        ownership.scratch(path) as scratch,
        paths.plain(scratch) as folder,
    ):
        partial = folder / "version"
        signatures, expected = serving_signatures.write(
            encoder, images, normalize, partial
        )
        serving_warmup.write(partial, size)
        loaded = _write_keras(encoder, partial / "encoder.keras")
        embed = serving_signatures.embedding_function(loaded, normalize)
        verification.check(
            "encoder.keras",
            embed(images)["embedding"],
            expected,
            verification.tolerance_of(encoder),
        )
        if format is not None:
            runtimes.write(encoder, images, normalize, format, partial)
        model_card.write(
            partial,
            path.resolve().name,
            signatures=signatures,
            output=output,
            normalized=normalize,
            file=runtimes.FILES.get(format),
            training=training,
        )
        return versions.add_version(partial, path, version)


def _write_keras(encoder, path):
    """Writes the encoder for fine-tuning; returns what others will load."""
    try:
        model_state.with_whole_batches(encoder).save(path)
        return keras.models.load_model(path)
    except (NotImplementedError, TypeError, ValueError) as error:
        cause = error
        while cause.__context__ is not None:  # the model's, its part's, ...
            cause = cause.__context__
        raise ValueError(
            "An encoder to export must have layers that Keras can load. "
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
            "An encoder to export must take pixels in [0, 255], and normalize "
            f"them itself. Received: {encoder!r}, whose range is unknown. "
            "Build it with `build_encoder`, which takes any functional Keras "
            "model as `backbone`."
        )
    return shape[1]
