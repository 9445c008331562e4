"""Whole steps compiled by XLA, as is Keras's default on one GPU."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from moco_keras import (
    MoCo,
    SplitBatchNormalization,
    augmentations,
    build_encoder,
    data,
    optimizers,
)
from moco_keras.distribution import accelerators

STEPS, BATCH = 3, 8


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    monkeypatch.setattr(accelerators, "on_gpu", lambda: True)


def make_model(pipeline, size, jit_compile, norm=1, **settings):
    """`norm` is the number of splits, or "sync"."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((size, size, 3))
    for _ in range(2):
        x = keras.layers.Conv2D(6, 3, strides=2)(x)
        x = (
            SplitBatchNormalization(synchronized=True)(x)
            if norm == "sync"
            else SplitBatchNormalization(norm, activation="relu")(x)
        )
    model = MoCo(
        build_encoder(keras.Model(inputs, x), size, 4),
        pipeline and getattr(augmentations, pipeline)(size),
        **{"queue_size": 37, "momentum": 0.9, "temperature": 0.2, **settings},
    )
    model.compile(optimizer=optimizers.SGD(0.1), jit_compile=jit_compile)
    assert jit_compile == "auto" or model.jit_compile is jit_compile
    return model


def train(model, data):
    """Returns the loss of each step, and all variables."""
    # One step an epoch, because Keras reports the mean loss of an epoch.
    history = model.fit(
        data,
        batch_size=BATCH if isinstance(data, (np.ndarray, tuple)) else None,
        epochs=STEPS,
        steps_per_epoch=1,
        verbose=0,
    )
    return history.history["loss"], {v.path: v.numpy() for v in model.variables}


def pictures(size, rng):
    shape = (STEPS * BATCH, size + 8, size, 3)
    return rng.integers(0, 256, shape, "uint8")


def ready_views(rng):
    shape = (2, STEPS * BATCH, 32, 32, 3)
    return tuple(rng.uniform(0, 255, shape).astype("float32"))


def assert_xla_changes_nothing(data, **kind):
    plain, compiled = (
        train(make_model(jit_compile=jit_compile, **kind), data)
        for jit_compile in (False, True)
    )
    bfloat16 = keras.config.dtype_policy().name == "mixed_bfloat16"
    tolerance = 3e-3 if bfloat16 else 1e-4
    np.testing.assert_allclose(compiled[0], plain[0], rtol=0, atol=tolerance)
    if bfloat16:
        return  # rounded gradients drive the weights apart
    pairs = zip(compiled[1].values(), plain[1].items(), strict=True)
    for value, (path, expected) in pairs:
        np.testing.assert_allclose(
            value, expected, rtol=0, atol=1e-3, err_msg=path
        )


@pytest.mark.slow
def test_cifar(rng):
    images = pictures(32, rng)
    assert_xla_changes_nothing(images, pipeline="cifar", size=32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pipeline", "size"),
    # At 224, the one that has all layers of the others.
    [("moco_v1", 32), ("moco_v2", 32), ("moco_v2", 224)],
)
def test_pipelines(pipeline, size, rng):
    images = pictures(size, rng)
    assert_xla_changes_nothing(images, pipeline=pipeline, size=size)


@pytest.mark.slow
@pytest.mark.parametrize("norm", [2, "sync"])
def test_batch_norms(norm, rng):
    """On one replica, synchronized batch norm is plain batch norm."""
    assert_xla_changes_nothing(
        ready_views(rng),
        pipeline=None,
        size=32,
        norm=norm,
        symmetric=True,
    )


@pytest.mark.slow
def test_ready_views(rng):
    assert_xla_changes_nothing(ready_views(rng), pipeline=None, size=32)


@pytest.mark.slow
def test_views_cut_where_images_are_read(rng, tmp_path):
    for i, image in enumerate(pictures(32, rng)):
        keras.utils.save_img(tmp_path / f"{i}.png", image)
    views = data.two_views(
        data.read(tmp_path), augmentations.crop_and_flip(32), BATCH
    )
    assert_xla_changes_nothing(views, pipeline=None, size=32)


@pytest.mark.slow
def test_mixed_precision(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    images = pictures(32, rng)
    # Other pipelines have no other layers, and all cut views in float32.
    assert_xla_changes_nothing(images, pipeline="moco_v2", size=32)


def batches_of(size, count):
    """A data set whose batch size is unknown before it runs."""
    images = np.random.default_rng(0).integers(
        0, 256, (count * size, 32, 32, 3), "uint8"
    )
    return tf.data.Dataset.from_tensor_slices(images).batch(size)


def as_views(images):
    images = tf.cast(images, "float32")
    return images, 255 - images


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_batches_of_unknown_size_must_fit_the_queue(jit_compile):
    """XLA drops assertions, so the step must check the size itself."""
    model = make_model(None, 32, jit_compile, queue_size=20)
    model.fit(batches_of(20, 2).map(as_views), verbose=0)
    assert int(model.queue.pointer) == 0
    keys = model.queue.keys.numpy()
    with pytest.raises(ValueError, match="`queue_size` must.*got 24.*Raise"):
        model.fit(batches_of(24, 1).map(as_views), verbose=0)
    np.testing.assert_array_equal(model.queue.keys, keys)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_splits_must_divide_batches_of_unknown_size(jit_compile):
    model = make_model("cifar", 32, jit_compile, norm=4)
    with pytest.raises(ValueError, match="`splits` of batch norm.*= 6.*drop"):
        model.fit(batches_of(6, 1), verbose=0)


@pytest.mark.slow
def test_the_loading_machine_decides_whether_to_compile(tmp_path, rng):
    views = ready_views(rng)
    model = make_model(None, 32, jit_compile=True)
    model.fit(views, batch_size=BATCH, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    fresh = make_model(None, 32, "auto")
    assert loaded.compiled and loaded.jit_compile is fresh.jit_compile
    loaded.fit(views, batch_size=BATCH, verbose=0)
