"""The functions of an exported encoder that servers and other programs call."""

import keras
import numpy as np
import tensorflow as tf

from moco_keras.data import decoding
from moco_keras.export import verification


def embedding_function(encoder, normalize):
    """Makes a function of images that can be traced.

    Args:
        encoder: a `keras.Model`.
        normalize: whether to divide each embedding by its length.

    Returns:
        A function from images of any dtype, (N, S, S, 3), to {"embedding":
        float32 (N, D)}.
    """

    def embed(images):
        embedding = encoder(tf.cast(images, "float32"), training=False)
        embedding = tf.cast(embedding, "float32")
        if normalize:
            embedding = tf.math.l2_normalize(embedding, axis=1)
        return {"embedding": embedding}

    return embed


def _with_empty_batches(embed):
    """The same function, which takes a batch of no images, too.

    Some kernels fail on an empty one.
    """

    def embed_all(images):
        number = tf.shape(images)[0]
        more = [[0, tf.maximum(0, 1 - number)], *[[0, 0]] * 3]
        return {"embedding": embed(tf.pad(images, more))["embedding"][:number]}

    return embed_all


def _check_shape(images, size):
    """Returns the images, with a check of their shape that a server runs.

    Images of another shape would end in an error deep within, in a crash of the
    process, or in embeddings of something else.
    """
    with tf.name_scope("given"):
        images = tf.raw_ops.PlaceholderWithDefault(
            input=images,
            shape=tf.TensorShape(None),  # or TensorFlow would rely on it
            name="images",
        )
    return tf.ensure_shape(images, (None, size, size, 3))


def write(encoder, images, normalize, folder):
    """Writes a SavedModel with both signatures, and checks that it loads.

    Args:
        encoder: a `keras.Model` from images to embeddings.
        images: uint8 (N, S, S, 3), to check it on.
        normalize: whether to divide each embedding by its length.
        folder: a `Path`, that of the SavedModel.

    Returns:
        The signatures, as `model_card.write` takes them, and the embeddings of
        the images.

    Raises:
        ValueError: if the encoder returns NaN or infinity, or what was loaded
            does not return what the encoder does.
    """
    from moco_keras import augmentations  # slow to import

    size = images.shape[1]
    evaluation = augmentations.evaluation(size)
    embed = _with_empty_batches(embedding_function(encoder, normalize))

    def serve_images(images):
        return embed(_check_shape(images, size))

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
    tolerance = verification.tolerance_of(encoder)
    signatures = tf.saved_model.load(str(folder)).signatures
    files = tf.stack([tf.io.encode_png(image) for image in images])
    for name, given in {
        "serving_default": {"images": tf.constant(images)},
        "serve_encoded": {"image_bytes": files},
    }.items():
        found = signatures[name](**given)["embedding"]
        verification.check(name, found, expected, tolerance)
    outputs = {"embedding": embedding}
    return {
        "serving_default": ({"images": images_spec}, outputs),
        "serve_encoded": ({"image_bytes": contents}, outputs),
    }, expected
