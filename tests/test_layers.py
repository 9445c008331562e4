"""What every layer must do: configure, compute at any precision, save, load."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from moco_keras import KeyQueue, SplitBatchNormalization
from moco_keras import augmentations as aug
from moco_keras.losses import fused_info_nce

POLICIES = ["float32", "mixed_float16", "mixed_bfloat16", "float16", "float64"]
AUGMENTATIONS = {
    "crop": (aug.RandomResizedCrop, {"image_size": 6, "scale": (0.3, 0.9)}),
    "evaluation": (aug.CenterCropAndResize, {"image_size": 6}),
    "its size": (aug.CenterCropAndResize, {"image_size": 10}),
    "flip": (aug.RandomHorizontalFlip, {"rate": 0.4}),
    "gray": (aug.RandomGrayscale, {"rate": 0.4}),
    "jitter": (aug.RandomColorJitter, {"hue": 0.3, "rate": 0.9}),
    "blur": (aug.RandomGaussianBlur, {"sigma": (0.2, 1.0), "rate": 0.9}),
    "solarize": (aug.RandomSolarize, {"rate": 0.4, "threshold": 100.0}),
}
BATCH_NORMS = {
    "plain": {},
    "split": {"splits": 2, "momentum": 0.8, "epsilon": 1e-3},
    "synchronized": {"synchronized": True},
    "activated": {"activation": "relu"},
}


def copy_of(layer):
    """The layer, rebuilt from its config through JSON, as in a file."""
    config = keras.saving.serialize_keras_object(layer)
    config = json.loads(json.dumps(config))
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == layer.get_config()
    assert type(layer).from_config(layer.get_config()).dtype_policy.name == (
        layer.dtype_policy.name
    )
    return copy


def check_symbolic(layer, inputs, outputs):
    """A symbolic call returns the shape and dtype of the outputs."""
    spec = keras.KerasTensor((None, *inputs.shape[1:]), inputs.dtype.name)
    symbolic = layer(spec)
    assert symbolic.shape == (None, *outputs.shape[1:])
    assert symbolic.dtype == keras.backend.standardize_dtype(outputs.dtype)
    assert layer.compute_output_shape(inputs.shape) == outputs.shape


def saved_and_loaded(layer, inputs, folder):
    """A model of the layer, after saving and loading it."""
    start = keras.Input(inputs.shape[1:], dtype=inputs.dtype.name)
    model = keras.Model(start, layer(start))
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize(
    ("policy", "dtype"),
    [*((p, "float32") for p in POLICIES), ("mixed_float16", "uint8")],
)
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_at_any_precision(name, policy, dtype, rng, tmp_path):
    make, kwargs = AUGMENTATIONS[name]
    images = rng.uniform(0, 255, (4, 10, 10, 3)).astype(dtype)
    plain, layer = make(**kwargs, seed=3), make(**kwargs, seed=3, dtype=policy)
    assert layer.dtype_policy.name == policy
    expected, views = plain(images), layer(images)
    np.testing.assert_array_equal(views, expected)
    assert views.dtype == "float32"
    assert not np.array_equal(views, images) or name == "its size"
    check_symbolic(layer, images, views)
    copy = copy_of(layer)
    np.testing.assert_array_equal(copy(images), expected)
    np.testing.assert_array_equal(copy(images[0]).shape, expected.shape[1:])
    loaded = saved_and_loaded(copy_of(layer), images, tmp_path)
    assert loaded(images).dtype == "float32"


@pytest.mark.slow
@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize(
    "pipeline", [aug.moco_v1, aug.moco_v2, aug.cifar, aug.crop_and_flip]
)
def test_pipelines_at_any_precision(pipeline, policy, rng):
    images = rng.integers(0, 256, (4, 10, 10, 3), "uint8")
    keras.utils.set_random_seed(3)
    expected = pipeline(8)(images)
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(3)
    np.testing.assert_array_equal(pipeline(8)(images), expected)


@pytest.mark.parametrize("policy", POLICIES[:-1])
@pytest.mark.parametrize("name", BATCH_NORMS)
def test_batch_norms_at_any_precision(name, policy, rng, tmp_path):
    x = rng.normal(3, 2, (4, 5, 5, 3)).astype("float32")
    plain, layer = (
        SplitBatchNormalization(**BATCH_NORMS[name], dtype=dtype)
        for dtype in ("float32", policy)
    )
    tolerances = {"float32": 1e-6, "float16": 4e-3, "bfloat16": 3e-2}
    tolerance = tolerances[layer.compute_dtype]
    for training in (True, False):
        y = layer(x, training=training)
        assert y.dtype == layer.compute_dtype
        np.testing.assert_allclose(
            tf.cast(y, "float32"),
            plain(x, training=training),
            rtol=tolerance,
            atol=tolerance,
        )
    for weight, expected in zip(layer.weights, plain.weights, strict=True):
        assert weight.dtype == "float32"
        np.testing.assert_allclose(weight, expected, rtol=0.01)
    inputs = x.astype(layer.compute_dtype) if policy == "float16" else x
    check_symbolic(layer, inputs, y)
    assert copy_of(layer).splits == layer.splits
    loaded = saved_and_loaded(layer, x, tmp_path)
    np.testing.assert_array_equal(loaded(x), y)


def test_batch_norm_in_float64_is_refused():
    with pytest.raises(ValueError, match="float32 or shorter.*dtype=float64"):
        SplitBatchNormalization(dtype="float64")


@pytest.mark.parametrize("policy", POLICIES)
def test_a_queue_is_float32_at_any_precision(policy, rng):
    plain = KeyQueue(5, 3, seed=1)
    queue = KeyQueue(5, 3, seed=1, dtype=policy)
    assert queue.dtype_policy.name == policy
    q, k = rng.normal(size=(2, 4, 3)).astype("float32")
    for each in (plain, queue, copy_of(queue)):
        each.enqueue(tf.constant(k))
        assert each.keys.dtype == "float32" and not each.trainable
        np.testing.assert_array_equal(each.keys, plain.keys)
        for ours, expected in zip(
            fused_info_nce(tf.constant(q), tf.constant(k), each.keys, 0.1),
            fused_info_nce(tf.constant(q), tf.constant(k), plain.keys, 0.1),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, expected)
