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
    [({"momentum": 1.0}, "momentum=1.0"), ({"l2": -1.0}, "l2=-1.0")],
)
def test_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        optimizers.SGD(0.1, **kwargs)


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
    optimizer = optimizers.SGD(schedules.EpochCosine(0.06, 7, 20), l2=3e-4)
    config = keras.saving.serialize_keras_object(optimizer)
    loaded = keras.saving.deserialize_keras_object(config)
    assert loaded.get_config() == optimizer.get_config()
