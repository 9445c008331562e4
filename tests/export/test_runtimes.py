import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import moco_keras
from moco_keras import export_encoder


def run_onnx(path, images, result="embedding"):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path)
    (given,), (returned,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type) == ("images", "tensor(uint8)")
    assert returned.name == result
    return session.run([result], {"images": images})[0]


def run_litert(path, images, result="embedding"):
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    runner = litert.Interpreter(model_path=str(path)).get_signature_runner()
    return runner(images=images)[result]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # from the converters' own code
@pytest.mark.parametrize(
    ("format", "file", "run"),
    [
        ("onnx", "encoder.onnx", run_onnx),
        ("litert", "encoder.tflite", run_litert),
    ],
)
@pytest.mark.parametrize(
    "precision",
    ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)],
)
def test_other_runtimes_return_the_same_embeddings(
    format, file, run, precision, images, shallow_networks, tmp_path
):
    if format == "onnx":
        pytest.importorskip("tf2onnx")
    keras.config.set_dtype_policy(precision)
    encoder = moco_keras.build_encoder("resnet18", 8, 4, width=4, bn_splits=2)
    folder = export_encoder(encoder, tmp_path, format=format, normalize=True)
    # The same encoder in float32 says what to expect in either precision.
    keras.config.set_dtype_policy("float32")
    expected = moco_keras.build_encoder("resnet18", 8, 4, width=4, bn_splits=2)
    expected.set_weights(encoder.get_weights())
    expected = moco_keras.backbone(expected).predict(images, verbose=0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    empty = [0] if format == "onnx" else []  # LiteRT's kernels refuse it
    for n in (*empty, 1, 7, 16):
        embedding = run(folder / file, images[:n])
        assert embedding.dtype == np.float32
        np.testing.assert_allclose(embedding, expected[:n], rtol=0, atol=1e-5)
    card = (folder / "README.md").read_text()
    assert f"`{file}` is the same for" in card


@pytest.mark.filterwarnings("ignore")  # from the converters' own code
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(
    ("format", "file", "run"),
    [
        ("onnx", "classifier.onnx", run_onnx),
        ("litert", "classifier.tflite", run_litert),
    ],
)
def test_other_runtimes_return_the_same_probabilities(
    format, file, run, precision, images, make_encoder, tmp_path
):
    if format == "onnx":
        pytest.importorskip("tf2onnx")
    keras.config.set_dtype_policy(precision)
    model = moco_keras.build_classifier(make_encoder(), 3)
    model.get_layer("logits").kernel.assign_add(np.random.rand(6, 3) / 10)
    keras.config.set_dtype_policy("float32")
    expected = moco_keras.build_classifier(make_encoder(), 3)
    expected.set_weights(model.get_weights())
    expected = np.exp(expected.predict(images, verbose=0).astype("float64"))
    expected /= expected.sum(axis=1, keepdims=True)
    folder = moco_keras.export_classifier(
        model, tmp_path, ["a", "b", "c"], format=format
    )
    empty = [0] if format == "onnx" else []  # LiteRT's kernels refuse it
    for n in (*empty, 1, 16):
        found = run(folder / file, images[:n], "probabilities")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[:n], rtol=0, atol=1e-5)
    card = (folder / "README.md").read_text()
    assert f"`{file}` is the same for" in card
    assert "from `images` to `probabilities`" in card


@keras.saving.register_keras_serializable(package="test_runtimes")
class Wrapper(keras.layers.Layer):
    """A layer that makes another, which its config does not mention."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = keras.layers.Conv2D(4, 3)

    def build(self, shape):
        self.conv.build(shape)

    def call(self, inputs):
        return self.conv(inputs)


@pytest.mark.filterwarnings("ignore")  # from the converters' own code
def test_layers_within_layers_compute_in_float32(images, tmp_path):
    pytest.importorskip("tf2onnx")
    keras.config.set_dtype_policy("mixed_bfloat16")
    inputs = keras.Input((8, 8, 3))
    backbone = keras.Model(inputs, Wrapper()(inputs))
    encoder = moco_keras.build_encoder(backbone, 8, 4)
    folder = export_encoder(encoder, tmp_path, format="onnx")
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    expected = moco_keras.backbone(encoder).predict(images, verbose=0)
    embedding = run_onnx(folder / "encoder.onnx", images)
    np.testing.assert_allclose(embedding, expected, rtol=0, atol=0.05)


def hard_to_convert(name):
    """A layer that the converter of some runtime does not handle by itself."""
    if name == "gelu":
        return keras.layers.Activation("gelu")
    if name == "constant":
        return keras.layers.Normalization(mean=[1, 2, 3], variance=[4, 5, 6])
    layer = keras.layers.Normalization()
    layer.adapt(np.random.default_rng(1).normal(3, 5, (64, 8, 8, 3)))
    return layer


@pytest.mark.filterwarnings("ignore")  # from the converters' own code
@pytest.mark.parametrize("name", ["gelu", "constant", "adapted"])
@pytest.mark.parametrize(
    ("format", "file", "run"),
    [
        ("onnx", "encoder.onnx", run_onnx),
        ("litert", "encoder.tflite", run_litert),
    ],
)
def test_layers_that_are_hard_to_convert(
    format, file, run, name, images, tmp_path
):
    if format == "onnx":
        pytest.importorskip("tf2onnx")
        pytest.importorskip("onnxruntime")
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3)(hard_to_convert(name)(inputs))
    encoder = moco_keras.build_encoder(keras.Model(inputs, x), 8, 4)
    folder = export_encoder(encoder, tmp_path, format=format)
    expected = moco_keras.backbone(encoder)(images)
    embedding = run(folder / file, images)
    np.testing.assert_allclose(embedding, expected, rtol=0, atol=1e-5)


@keras.saving.register_keras_serializable(package="test_runtimes")
class Unknown(keras.layers.Layer):
    """Calls an operation that neither runtime has."""

    def call(self, inputs):
        return tf.math.igamma(2.0, tf.abs(inputs))


@pytest.mark.filterwarnings("ignore")  # from the converters' own code
@pytest.mark.parametrize("format", ["onnx", "litert"])
def test_an_operation_that_a_runtime_lacks_is_refused(format, tmp_path):
    if format == "onnx":
        pytest.importorskip("tf2onnx")
        pytest.importorskip("onnxruntime")
    inputs = keras.Input((8, 8, 3))
    backbone = keras.Model(inputs, Unknown()(inputs))
    encoder = moco_keras.build_encoder(backbone, 8, 4)
    with pytest.raises(ValueError, match="operations that the runtime has.*Ig"):
        export_encoder(encoder, tmp_path, format=format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["tf2onnx", "onnx", "onnxruntime"])
def test_the_error_names_a_missing_converter_or_runtime(
    package, make_encoder, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"without .*{package}.*pip install"):
        export_encoder(make_encoder(), tmp_path / "saved", format="onnx")
    assert not (tmp_path / "saved").exists()
