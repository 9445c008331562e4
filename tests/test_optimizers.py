import math

import keras
import numpy as np
import pytest
import pytorch

from moco_keras import optimizers, schedules


def test_sgd_matches_pytorch_while_the_rate_changes():
    fixture = pytorch.load("optimizer")
    variable = keras.Variable(fixture["initial"])
    optimizer = optimizers.SGD(0.1, momentum=0.9, l2=0.01)
    optimizer.build([variable])
    steps = zip(
        fixture["gradients"], fixture["rates"], fixture["weights"], strict=True
    )
    for gradient, rate, expected in steps:
        optimizer.learning_rate = rate
        optimizer.apply([keras.ops.convert_to_tensor(gradient)])
        np.testing.assert_allclose(variable, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"l2": -1.0}, "l2=-1.0"),
        ({"multipliers": {"head": -2}}, "at least 0.*multipliers=-2"),
    ],
)
def test_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        optimizers.SGD(0.1, **kwargs)


def weights_after(gradients, sizes, multipliers=None, **kwargs):
    """Those of two layers, "body" and "head", of `sizes`, from ones."""
    layers = {}
    for name, size in sizes.items():
        layers[name] = keras.layers.Dense(size, use_bias=False, name=name)
        layers[name].build((None, 1))
    variables = [layer.kernel for layer in layers.values()]
    optimizer = optimizers.SGD(0.1, multipliers=multipliers, **kwargs)
    for step in gradients:
        parts = np.split(step, np.cumsum([*sizes.values()])[:-1])
        for variable in variables if not optimizer.built else ():
            variable.assign(np.ones(variable.shape))
        optimizer.apply([keras.ops.array(p[None]) for p in parts], variables)
    return np.concatenate([v.numpy()[0] for v in variables])


def test_multipliers_multiply_the_rate_of_their_layers(rng):
    """Every weight moves by itself, so that SGD of another rate tells."""
    gradients = rng.normal(size=(4, 5)).astype("float32")
    found = weights_after(gradients, {"body": 3, "head": 2}, {"head": 20})
    body = weights_after(gradients[:, :3], {"body": 3})
    np.testing.assert_array_equal(found[:3], body)
    head = np.ones(2)
    buffer = np.zeros(2)
    for gradient in gradients[:, 3:]:
        buffer = 0.9 * buffer + gradient + 1e-4 * head
        head = head - 20 * 0.1 * buffer
    np.testing.assert_allclose(found[3:], head, rtol=1e-5)
    frozen = weights_after(gradients, {"body": 3, "head": 2}, {"body": 0})
    np.testing.assert_array_equal(frozen[:3], 1)
    ones = weights_after(gradients, {"body": 3, "head": 2}, {"body": 1})
    without = weights_after(gradients, {"body": 3, "head": 2})
    np.testing.assert_array_equal(ones, without)


def test_multipliers_of_a_layer_and_of_the_model_around_it():
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(1, name="inner")], name="outer"
    )
    model.set_weights([np.ones((2, 1)), np.zeros(1)])
    outer = keras.Sequential([keras.Input((2,)), model])
    optimizer = optimizers.SGD(
        0.1, momentum=0, l2=0, multipliers={"outer": 2, "inner": 3}
    )
    optimizer.apply([np.ones((2, 1)), np.ones(1)], outer.trainable_variables)
    np.testing.assert_allclose(model.get_weights()[0], 1 - 6 * 0.1, rtol=1e-6)


@pytest.mark.parametrize("name", ["logit", "kernel", "outer/inner"])
def test_multipliers_of_unknown_layers_are_refused(name):
    layer = keras.layers.Dense(2, name="logits")
    layer.build((None, 3))
    optimizer = optimizers.SGD(0.1, multipliers={"logits": 2, name: 3})
    with pytest.raises(
        ValueError, match=f"Received: {name}. Layers that are trained: logits"
    ):
        optimizer.build(layer.trainable_variables)


def test_schedules_at_every_epoch():
    by_step = schedules.step_schedule(0.03, 97, milestones=(120, 160))
    by_cosine = schedules.EpochCosine(0.06, steps_per_epoch=97, epochs=200)
    for epoch in range(200):
        stepped = 0.03 * 0.1 ** sum(epoch >= m for m in (120, 160))
        cosine = 0.06 * (1 + math.cos(math.pi * epoch / 200)) / 2
        for step in (97 * epoch, 97 * epoch + 96):  # the first and the last
            assert float(by_step(step)) == pytest.approx(stepped, rel=1e-6)
            assert float(by_cosine(step)) == pytest.approx(cosine, rel=1e-6)


def test_cosine_stays_at_0_after_the_last_epoch():
    schedule = schedules.EpochCosine(0.06, steps_per_epoch=7, epochs=20)
    assert float(schedule(7 * 20)) == float(schedule(1000)) == 0


def test_saved_and_loaded():
    optimizer = optimizers.SGD(
        schedules.EpochCosine(0.06, 7, 20), l2=3e-4, multipliers={"logits": 20}
    )
    config = keras.saving.serialize_keras_object(optimizer)
    loaded = keras.saving.deserialize_keras_object(config)
    assert loaded.get_config() == optimizer.get_config()
