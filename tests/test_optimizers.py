import math

import keras
import numpy as np
import pytest
import reference

from moco_keras import optimizers, schedules


def test_sgd_is_pytorchs(rng):
    w = rng.normal(size=5).astype("float32")
    gradients = rng.normal(size=(30, 5)).astype("float32")
    rates = [0.1] * 10 + [0.01] * 20
    variable = keras.Variable(w)
    optimizer = optimizers.SGD(0.1, momentum=0.9, l2=0.01)
    optimizer.build([variable])
    for g, rate in zip(gradients, rates, strict=True):
        optimizer.learning_rate = rate
        optimizer.apply([keras.ops.convert_to_tensor(g)])
    expected = reference.sgd(w, gradients, rates, momentum=0.9, l2=0.01)
    np.testing.assert_allclose(variable, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"momentum": 1.0}, "momentum=1.0"), ({"l2": -1.0}, "l2=-1.0")],
)
def test_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        optimizers.SGD(0.1, **kwargs)


def test_step_schedule_falls_at_its_milestones():
    schedule = schedules.step_schedule(1.0, 10, milestones=(3, 5))
    rates = [float(schedule(step)) for step in range(70)]
    expected = [1.0] * 30 + [0.1] * 20 + [0.01] * 20
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_cosine_is_constant_within_an_epoch():
    schedule = schedules.EpochCosine(0.06, steps_per_epoch=7, epochs=20)
    for epoch in range(20):
        expected = 0.06 * (1 + math.cos(math.pi * epoch / 20)) / 2
        for step in (7 * epoch, 7 * epoch + 6):
            assert float(schedule(step)) == pytest.approx(expected, rel=1e-5)
    assert float(schedule(1000)) == pytest.approx(0, abs=1e-8)


def test_saved_and_loaded():
    optimizer = optimizers.SGD(schedules.EpochCosine(0.06, 7, 20), l2=3e-4)
    config = keras.saving.serialize_keras_object(optimizer)
    loaded = keras.saving.deserialize_keras_object(config)
    assert loaded.get_config() == optimizer.get_config()
