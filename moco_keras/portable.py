"""Encoders for runtimes other than TensorFlow's: ONNX's and LiteRT."""

import importlib.util
import tempfile

import keras
import tensorflow as tf

FILES = {"onnx": "encoder.onnx", "litert": "encoder.tflite"}


def check(format):
    """Refuses a format that is unknown, or whose converter is missing.

    Raises:
        ImportError: if the converter is not installed.
        ValueError: if there is no such format.
    """
    if format not in FILES:
        raise ValueError(
            f"`format` must be one of {', '.join(FILES)}, or None. "
            f"Received: format={format!r}."
        )
    if format == "onnx" and importlib.util.find_spec("tf2onnx") is None:
        raise ImportError(
            "The package tf2onnx must be installed for format='onnx'. "
            "Install it: pip install tf2onnx onnx"
        )


def in_float32(encoder):
    """The same encoder, of the same weights, that computes in float32.

    The runtimes know little of bfloat16.
    """

    def clone(layer):
        config = layer.get_config()
        if "dtype" in config:
            config["dtype"] = "float32"
        return type(layer).from_config(config)

    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")  # of layers within layers
    try:
        copy = keras.models.clone_model(
            encoder, clone_function=clone, recursive=True
        )
    finally:
        keras.config.set_dtype_policy(policy)
    copy.set_weights(encoder.get_weights())
    return copy


def write(encoder, embed, images, format, folder):
    """Converts a function of images, and writes its file.

    Args:
        encoder: what holds the variables of the function.
        embed: function from images to {"embedding": float32 (N, D)}.
        images: `tf.TensorSpec` of its input.
        format: "onnx" or "litert".
        folder: a `Path`, where `FILES[format]` is to be.
    """
    path = folder / FILES[format]
    if format == "onnx":
        import tf2onnx

        function = tf.function(embed, input_signature=[images])
        tf2onnx.convert.from_function(
            function, input_signature=[images], output_path=str(path)
        )
        return
    with tempfile.TemporaryDirectory() as saved:
        archive = keras.export.ExportArchive()
        archive.track(encoder)
        archive.add_endpoint("serving_default", embed, [images])
        archive.write_out(saved, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(saved)
        path.write_bytes(converter.convert())
