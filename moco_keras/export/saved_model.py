"""SavedModels of trained encoders, for TensorFlow Serving and others."""

import contextlib
import json

import keras
import numpy as np
import tensorflow as tf

from moco_keras import arguments
from moco_keras.data import decoding
from moco_keras.distribution import accelerators
from moco_keras.export import model_card, runtimes, serving_warmup, versions
from moco_keras.models import encoders, model_state
from moco_keras.system import ownership, paths
from moco_keras.system.paths import printable

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
      size, and fails with `InvalidArgument` if they are of another.
    - `serve_encoded` takes `image_bytes`, string (N,): JPEG, PNG or BMP files,
      or GIFs, of which it takes the first picture, of up to 50 million pixels.
      It brings them to the encoder's size as `augmentations.evaluation` does,
      and fails with `InvalidArgument` if one of them is something else.

    Of no images, N = 0, both return no embeddings, (0, D), and so does ONNX
    Runtime; LiteRT refuses them.

    Beside it are `encoder.keras`, the same for fine-tuning, and what is known
    of it: `encoder.json`, and `README.md` made from that. Batch norm in
    `encoder.keras` is one of whole batches, of any size: its splits, and its
    synchronization, are of pre-training. Where the package
    tensorflow-serving-api is installed, there are requests in `assets.extra`
    with which a server warms up. If requested, there is also a file for another
    runtime, `encoder.onnx` or `encoder.tflite`, of which `images` is the input
    and `embedding` the output, and whose arithmetic is float32.

    Each of these was loaded again and has embedded a batch as the encoder does
    before the version gets its number. Of a `MoCo` whose epoch was interrupted,
    batch norm's moving statistics are the mean over its replicas.

    Args:
        model: a `MoCo`, or an encoder from `build_encoder`.
        path: folder of all versions.
        version: number of this one, 1 or more; by default the one after the
            highest.
        output: "features", those of the backbone, or "projection", what the
            loss compares.
        normalize: whether to divide each embedding by its length.
        format: another to write too: "onnx", for ONNX Runtime, which needs the
            packages tf2onnx, onnx and onnxruntime, or "litert", for LiteRT,
            which was called TensorFlow Lite.
        training: what to record of the training: settings, data, metrics; a
            dict of what JSON can hold.

    Returns:
        The version's folder, a `Path`.

    Raises:
        FileExistsError: if the version exists.
        OSError: if the folder cannot be made, or not be written to.
        ImportError: if the format's converter or runtime is not installed.
        ValueError: if an argument is none of the above, or the encoder does not
            take square RGB images of one size, or it is not known whether their
            pixels are in [0, 255], or its backbone cannot be told from its
            head, or Keras does not know one of its layers, or the format's
            runtime one of its operations, or what was written does not return
            what the encoder does. No version is left then.
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
        _writing_to(path),
        ownership.made(path),
        ownership.scratch(path) as scratch,
        paths.plain(scratch) as folder,
    ):
        partial = folder / "version"
        signatures, expected = _write_saved_model(
            encoder, images, normalize, partial
        )
        serving_warmup.write(partial, size)
        loaded = _write_keras(encoder, partial / "encoder.keras")
        found = _embedder(loaded, normalize)(images)["embedding"]
        _check("encoder.keras", found, expected, _tolerance(encoder))
        if format is not None:
            _write_portable(encoder, images, normalize, format, partial)
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


@contextlib.contextmanager
def _writing_to(path):
    errors = tf.errors
    try:
        yield
    except (
        OSError,
        errors.NotFoundError,
        errors.PermissionDeniedError,
        errors.ResourceExhaustedError,
    ) as error:
        if isinstance(error, OSError) and error.errno is None:
            raise  # it has its own words
        raise OSError(
            "A folder of an encoder's versions must be one that can be written "
            f"to. Received, for {printable(path)}: "
            f"{getattr(error, 'strerror', None) or error.message}. Nothing "
            "was exported, and what it held before is as it was. Make it "
            "writable, make room, or choose another."
        ) from error


def _embedder(encoder, normalize):
    """A function of images (N, S, S, 3), of any dtype, that a graph holds."""

    def embed(images):
        embedding = encoder(tf.cast(images, "float32"), training=False)
        embedding = tf.cast(embedding, "float32")
        if normalize:
            embedding = tf.math.l2_normalize(embedding, axis=1)
        return {"embedding": embedding}

    return embed


def _of_any_number(embed):
    """The same function, of a batch of no images, too.

    Some kernels fail on an empty one.
    """

    def embed_all(images):
        number = tf.shape(images)[0]
        more = [[0, tf.maximum(0, 1 - number)], *[[0, 0]] * 3]
        return {"embedding": embed(tf.pad(images, more))["embedding"][:number]}

    return embed_all


def _checked(images, size):
    """The same images, whose shape a server compares with the encoder's.

    Others would end in an error deep within, in a crash of the process, or in
    embeddings of something else.
    """
    with tf.name_scope("given"):
        images = tf.raw_ops.PlaceholderWithDefault(
            input=images,
            shape=tf.TensorShape(None),  # or TensorFlow would rely on it
            name="images",
        )
    return tf.ensure_shape(images, (None, size, size, 3))


def _write_saved_model(encoder, images, normalize, folder):
    """Returns signatures, as `model_card.write` takes them, and embeddings."""
    from moco_keras import augmentations  # slow to import

    size = images.shape[1]
    evaluation = augmentations.evaluation(size)
    embed = _of_any_number(_embedder(encoder, normalize))

    def serve_images(images):
        return embed(_checked(images, size))

    def decode(contents):
        return evaluation(decoding.decode(contents)[None])[0]

    def serve_encoded(contents):
        image = tf.TensorSpec((size, size, 3), "float32")
        return embed(tf.map_fn(decode, contents, fn_output_signature=image))

    images_spec = tf.TensorSpec((None, size, size, 3), "uint8", name="images")
    contents = tf.TensorSpec((None,), "string", name="image_bytes")
    embedding = tf.TensorSpec((None, encoder.output_shape[1]), "float32")
    archive = keras.export.ExportArchive()
    archive.track(encoder)
    serve = archive.add_endpoint("serving_default", serve_images, [images_spec])
    archive.add_endpoint("serve_encoded", serve_encoded, [contents])
    expected = serve(images)["embedding"]
    if not np.isfinite(expected).all():
        raise ValueError(
            "An encoder to export must return numbers. Received one that "
            "returns NaN or infinity for images of noise. Export an earlier "
            "state of it, and train with `callbacks.StopOnNaN`."
        )
    archive.write_out(str(folder), verbose=False)
    signatures = tf.saved_model.load(str(folder)).signatures
    files = tf.stack([tf.io.encode_png(image) for image in images])
    for name, given in {
        "serving_default": {"images": tf.constant(images)},
        "serve_encoded": {"image_bytes": files},
    }.items():
        found = signatures[name](**given)["embedding"]
        _check(name, found, expected, _tolerance(encoder))
    outputs = {"embedding": embedding}
    return {
        "serving_default": ({"images": images_spec}, outputs),
        "serve_encoded": ({"image_bytes": contents}, outputs),
    }, expected


def _write_keras(encoder, path):
    """For fine-tuning; returns what others will load."""

    def by_whole_batches(config):
        # Groups and replicas are of pre-training: whoever fine-tunes has
        # batches of any size, and lets Keras compile the step, which cannot
        # hold an exchange between replicas.
        if {"splits", "synchronized"} <= config.keys():
            config |= {"splits": 1, "synchronized": False}

    try:
        model_state.reconfigured(encoder, by_whole_batches).save(path)
        return keras.models.load_model(path)
    except (NotImplementedError, TypeError, ValueError) as error:
        cause = error
        while cause.__context__ is not None:  # of the model, of its part, ...
            cause = cause.__context__
        raise ValueError(
            "An encoder to export must be of layers that Keras can load. "
            f"Received one that it cannot: {str(cause).partition('. ')[0]}. "
            "Put `@keras.saving.register_keras_serializable()` before the "
            "class of each layer of your own, and give it a `get_config`."
        ) from error


def _write_portable(encoder, images, normalize, format, folder):
    file = runtimes.FILES[format]
    spec = tf.TensorSpec((None, *images.shape[1:]), "uint8", name="images")
    try:
        float32 = runtimes.in_float32(encoder)
        embed = _embedder(float32, normalize)
        run = runtimes.write(float32, embed, spec, format, folder)
        found = run(images)
    except Exception as error:  # each converter and runtime has its own
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(
            f"An encoder to export with format={format!r} must be of "
            "operations that the runtime has. Received one of which "
            f"{file} cannot be made, or does not run: "
            f"{reason.rpartition('error: ')[2]}. Nothing was exported. Replace "
            "the layer, or export without `format`."
        ) from error
    # Not with the encoder, which may round to bfloat16. That the copy has its
    # state was checked with `encoder.keras`, which is copied the same way.
    _check(file, found, embed(images)["embedding"], _tolerance(float32))


def _check(name, found, expected, tolerance):
    """Refuses a part of an export that does not return what it should."""
    error = np.max(np.abs(np.subtract(found, expected)))
    scale = np.max(np.abs(expected))
    if not error <= tolerance * scale:
        raise ValueError(
            f"`{name}` of an export must return what the encoder does. "
            f"Received embeddings of noise that are {error:.2g} apart, where "
            f"the largest number is {scale:.2g}. Nothing was exported. Look "
            "for a layer that keeps values beside its weights, and have its "
            "`save_own_variables` hold them, or one that draws random numbers "
            "in inference."
        )


def _tolerance(encoder):
    """How far roundings may bring embeddings apart; 1 is the largest number."""
    if accelerators.on_gpu() and (
        tf.config.experimental.tensor_float_32_execution_enabled()
    ):
        return 0.05
    half = {"bfloat16", "float16"}
    if half & {layer.compute_dtype for layer in model_state.layers(encoder)}:
        return 0.05
    return 1e-4


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
