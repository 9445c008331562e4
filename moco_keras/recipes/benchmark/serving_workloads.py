"""The benchmark's workloads on exports, and on their parts without them."""

import tempfile
from pathlib import Path

import tensorflow as tf

from moco_keras import augmentations, backbone, build_encoder, export_encoder
from moco_keras.files import decoding


def _exported(s):
    """An encoder of 224 pixels, the folder of its export, and a batch of JPEGs.

    The folder goes away with the last of them.
    """
    encoder = backbone(build_encoder(s["encoder"], 224))
    folder = tempfile.TemporaryDirectory()
    files = []
    for path in sorted(Path(s["jpegs"]).iterdir())[: s["batch_size"]]:
        image = tf.io.decode_jpeg(path.read_bytes(), channels=3)
        image = tf.image.resize_with_crop_or_pad(image, 224, 224)
        files.append(tf.io.encode_jpeg(image, quality=90).numpy())
    export_encoder(encoder, folder.name)
    return encoder, folder, tf.constant(files)


def _decoder():
    """Decodes files as `serve_encoded` does, all at once."""
    evaluation = augmentations.evaluation(224)
    image = tf.TensorSpec((224, 224, 3), "float32")

    @tf.function(input_signature=[tf.TensorSpec((None,), "string")])
    def decode(files):
        return tf.map_fn(
            lambda file: evaluation(decoding.decode(file)[None])[0],
            files,
            fn_output_signature=image,
        )

    return decode


def _caller(encoder):
    """The bare encoder, as a function of uint8 images."""
    images = tf.TensorSpec((None, 224, 224, 3), "uint8")
    return tf.function(
        lambda images: encoder(tf.cast(images, "float32"), training=False),
        input_signature=[images],
    )


def serve_encoded(s):
    """A request of JPEGs of 224 pixels to an export."""
    _, folder, files = _exported(s)
    serve = tf.saved_model.load(f"{folder.name}/1").signatures["serve_encoded"]
    return lambda: serve(image_bytes=files)["embedding"].numpy(), len(files)


def decode_and_encode(s):
    """The same by decoding all, and then encoding all."""
    encoder, _, files = _exported(s)
    decode, encode = _decoder(), _caller(encoder)

    def run():
        images = tf.cast(decode(files), "uint8")
        encode(images).numpy()

    return run, len(files)


def serve_images(s):
    """A request of images to an export."""
    _, folder, files = _exported(s)
    loaded = tf.saved_model.load(f"{folder.name}/1")
    serve = loaded.signatures["serving_default"]
    images = tf.cast(_decoder()(files), "uint8")
    return lambda: serve(images=images)["embedding"].numpy(), len(files)


def encode_images(s):
    """The same images to the bare encoder."""
    encoder, _, files = _exported(s)
    images, encode = tf.cast(_decoder()(files), "uint8"), _caller(encoder)
    return lambda: encode(images).numpy(), len(files)


def load_export(s):
    """Loading an export, and its first answer."""
    _, folder, files = _exported(s)

    def run():
        loaded = tf.saved_model.load(f"{folder.name}/1")
        loaded.signatures["serve_encoded"](image_bytes=files[:1])

    return run, 0
