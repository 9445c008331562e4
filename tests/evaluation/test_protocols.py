"""Linear classification and fine-tuning give the same numbers as PyTorch."""

import keras
import numpy as np
import pytest
import pytorch
import tensorflow as tf

from moco_keras import SplitBatchNormalization, build_classifier, build_encoder
from moco_keras.callbacks import CheckFrozen
from moco_keras.evaluation import protocols

FIXTURE = pytorch.load("linear")
INITIAL = pytorch.part(FIXTURE, "initial")


def make_classifier(trainable):
    inputs = x = keras.Input((8, 8, 3))
    for filters, strides in ((8, 1), (16, 2)):
        x = keras.layers.Conv2D(filters, 3, strides, use_bias=False)(x)
        x = keras.layers.ReLU()(SplitBatchNormalization(2)(x))
    encoder = build_encoder(keras.Model(inputs, x), image_size=8)
    model = build_classifier(encoder, 3, trainable=trainable)
    model.set_weights([pytorch.to_keras(w) for w in INITIAL.values()])
    return model


def train(name, model):
    """Trains as in the fixture; returns the learning rates and losses."""
    epochs = 20 if "PERCENT" in name else 10
    optimizer = getattr(protocols, name).optimizer(20 // epochs, 8, epochs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    images = FIXTURE["images"].astype("float32")
    batches = tf.data.Dataset.from_tensor_slices((images, FIXTURE["labels"]))
    rates = []
    note = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: rates.append(
            float(optimizer.learning_rate)
        )
    )
    checks = [CheckFrozen()] if "LINEAR" in name else []
    # One step an epoch, because Keras reports the mean loss of an epoch.
    history = model.fit(
        batches,
        epochs=20,
        steps_per_epoch=1,
        shuffle=False,
        verbose=0,
        callbacks=[note, *checks],
    )
    return rates, history.history["loss"]


def assert_same(values, expected, name):
    """Within 1e-5 of the largest: at a rate of 30, the small ones lose more."""
    np.testing.assert_allclose(
        values,
        expected,
        rtol=0,
        atol=1e-5 * max(1, np.abs(expected).max()),
        err_msg=name,
    )


@pytest.mark.parametrize(
    "name",
    [
        "MOCO_LINEAR",
        "MOCO_V3_LINEAR",
        "SWAV_1_PERCENT",
        "SWAV_10_PERCENT",
        "VICREG_1_PERCENT",
        "VICREG_10_PERCENT",
    ],
)
def test_twenty_steps(name):
    expected = pytorch.part(FIXTURE, name)
    protocol = getattr(protocols, name)
    model = make_classifier(protocol.trainable)
    rates, losses = train(name, model)
    of_head = np.multiply(rates, protocol.head_multiplier)
    np.testing.assert_allclose(of_head, expected["head_rates"], rtol=1e-5)
    assert_same(losses, expected["losses"], "losses")
    final = INITIAL | pytorch.part(expected, "final")
    for w, (weight_name, value) in zip(
        model.weights, final.items(), strict=True
    ):
        assert_same(w, pytorch.to_keras(value), weight_name)


def test_rates_of_the_papers():
    """At the first and the last step of each epoch."""
    for name, epochs, batch_size, backbone, head, factors in (
        # factors: of some epochs
        ("MOCO_LINEAR", 100, 256, 0, 30, {59: 1, 60: 0.1, 80: 0.01}),
        ("MOCO_V3_LINEAR", 90, 1024, 0, 0.4, {0: 1, 30: 0.75, 60: 0.25}),
        ("SWAV_1_PERCENT", 20, 256, 0.02, 5, {11: 1, 12: 0.2, 16: 0.04}),
        ("SWAV_10_PERCENT", 20, 256, 0.01, 0.2, {11: 1, 12: 0.2, 16: 0.04}),
        ("VICREG_1_PERCENT", 20, 256, 0.03, 0.08, {0: 1, 10: 0.5}),
        ("VICREG_10_PERCENT", 20, 256, 0.01, 0.1, {0: 1, 10: 0.5}),
    ):
        protocol = getattr(protocols, name)
        assert (protocol.epochs, protocol.batch_size) == (epochs, batch_size)
        assert protocol.trainable == ("all" if backbone else "head")
        optimizer = protocol.optimizer(steps_per_epoch=7)
        assert (optimizer.momentum, optimizer.l2) == (0.9, 0)
        multiplier = optimizer.multipliers["logits"]
        for epoch, factor in factors.items():
            for step in (7 * epoch, 7 * epoch + 6):
                optimizer.iterations.assign(step)
                rate = float(optimizer.learning_rate)
                assert rate * multiplier == pytest.approx(head * factor)
                if backbone:
                    assert rate == pytest.approx(backbone * factor)


def test_milestones_move_with_the_epochs():
    optimizer = protocols.MOCO_LINEAR.optimizer(3, epochs=5)
    rates = []
    for epoch in range(5):
        optimizer.iterations.assign(3 * epoch)
        rates.append(float(optimizer.learning_rate))
    np.testing.assert_allclose(rates, [30, 30, 30, 3, 0.3], rtol=1e-5)
    short = protocols.MOCO_LINEAR.optimizer(3, epochs=1)
    assert float(short.learning_rate) == 30


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"steps_per_epoch": 0}, "`steps_per_epoch` must be a positive"),
        ({"batch_size": 0}, "`batch_size` must be a positive.*batch_size=0"),
        ({"epochs": 0}, "`epochs` must be a positive.*epochs=0"),
    ],
)
def test_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        protocols.MOCO_V3_LINEAR.optimizer(**{"steps_per_epoch": 7} | kwargs)
