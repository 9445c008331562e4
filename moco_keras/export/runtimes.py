"""Files for other runtimes than TensorFlow: ONNX Runtime and LiteRT."""

import importlib.util
import tempfile
import warnings

import keras
import numpy as np
import tensorflow as tf

from moco_keras import keras_private
from moco_keras.export import verification

SUFFIXES = {"onnx": ".onnx", "litert": ".tflite"}
_ONNX = ("tf2onnx", "onnx", "onnxruntime")


def check(format):
    """Refuses a format that is unknown, or whose packages are missing.

    Raises:
        ImportError: if the converter or the runtime is not installed.
        ValueError: if there is no such format.
    """
    if format not in SUFFIXES:
        raise ValueError(
            f"`format` must be one of {', '.join(SUFFIXES)}, or None. "
            f"Received: format={format!r}."
        )
    missing = [name for name in _ONNX if importlib.util.find_spec(name) is None]
    if format == "onnx" and missing:
        raise ImportError(
            f"The packages {', '.join(_ONNX)} must be installed for "
            "format='onnx': a file is converted, then run, before it gets its "
            f"name. Received an installation without {', '.join(missing)}. "
            f"Install: pip install {' '.join(_ONNX)}"
        )


def write(exported, model, images, expected, format, folder):
    """Writes the file of a model for another runtime, and runs it.

    Args:
        exported: an `Exported`.
        model: its model, in float32: the other runtimes have few operations in
            bfloat16.
        images: (N, H, W, C), to check it on.
        expected: the model's results for the images, float32 (N, D).
        format: "onnx" or "litert".
        folder: a `Path`, where the file is to be.

    Returns:
        The file's name.

    Raises:
        ValueError: if the model has operations that the runtime lacks, or the
            file does not return what the model does.
    """
    file = exported.kind + SUFFIXES[format]
    spec = tf.TensorSpec((None, *images.shape[1:]), images.dtype, name="images")
    try:
        run = _convert(exported, model, spec, format, folder / file)
        found = run(images)
    except Exception as error:  # each converter and runtime has its own
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(
            f"An exported {exported.kind}, with format={format!r}, must use "
            "only operations that the runtime has. Received one whose "
            f"{file} cannot be made, or does not run: "
            f"{reason.rpartition('error: ')[2]}. Nothing was exported. Replace "
            "the layer, or export without `format`."
        ) from error
    tolerance = verification.tolerance_of(model)
    verification.check(exported, file, found, expected, tolerance)
    return file


def _convert(exported, model, images, format, path):
    """Converts a model, and writes its file.

    Args:
        exported: an `Exported`.
        model: its model, in float32.
        images: `tf.TensorSpec` of its input.
        format: "onnx" or "litert".
        path: a `Path`, of the file.

    Returns:
        A function from images, (N, H, W, C), to what the file's runtime
        makes of them, results, float32 (N, D).
    """
    compute = exported.function(model)
    if format == "onnx":
        return _write_onnx(compute, images, path)
    with tempfile.TemporaryDirectory() as saved:
        archive = keras.export.ExportArchive()
        archive.add_endpoint("serving_default", compute, [images])
        archive.write_out(saved, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(saved)
        path.write_bytes(converter.convert())
    with warnings.catch_warnings():
        # To be removed in favor of the package ai_edge_litert, as the converter
        # was; TensorFlow 2.21 still has both.
        warnings.filterwarnings("ignore", message=r"\s*Warning: tf.lite.Interp")
        interpreter = tf.lite.Interpreter(str(path))
    run = interpreter.get_signature_runner()
    return lambda images: run(images=images)[exported.result]


def _write_onnx(compute, images, path):
    import onnxruntime
    import tf2onnx

    tf2onnx.convert.from_function(
        tf.function(
            _without_captures(compute, images), input_signature=[images]
        ),
        input_signature=[images],
        custom_op_handlers={"Erfc": (_erfc, [])},
        output_path=str(path),
    )
    session = onnxruntime.InferenceSession(path)
    return lambda images: session.run(None, {"images": images})[0]


def _without_captures(compute, images):
    """The same function, with whatever it captures as constants in it.

    tf2onnx makes an input of each tensor that a function captures, such as the
    mean of a `Normalization`.
    """
    function = tf.function(compute, input_signature=[images])
    function = function.get_concrete_function()
    (result,) = function.structured_outputs
    function = keras_private.variables_to_constants(function)
    graph = function.graph.as_graph_def()
    given, *captured = (tensor.name for tensor in function.inputs)
    (returned,) = (tensor.name for tensor in function.outputs)
    values = [value.numpy() for value in function.captured_inputs]

    def call(images):
        inputs = {given: images, **dict(zip(captured, values, strict=True))}
        (value,) = tf.graph_util.import_graph_def(graph, inputs, [returned])
        return {result: value}

    return call


def _erfc(graph, node, name, arguments):
    """Converts 1 - erf(x), a part of TensorFlow's `gelu`, for ONNX."""
    shapes = [graph.get_shape(node.output[0])]
    dtypes = [graph.get_dtype(node.output[0])]
    graph.remove_node(name)
    one = graph.make_const(f"{name}/one", np.float32(1))
    erf = graph.make_node("Erf", node.input, shapes=shapes, dtypes=dtypes)
    graph.make_node(
        "Sub",
        [one.output[0], erf.output[0]],
        outputs=node.output,
        shapes=shapes,
        dtypes=dtypes,
    )
