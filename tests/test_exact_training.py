"""Twelve steps of MoCo give the same numbers as PyTorch."""

import keras
import numpy as np
import pytest
import pytorch
import reference
import tensorflow as tf

from moco_keras import (
    MoCo,
    SplitBatchNormalization,
    build_encoder,
    moco,
    optimizers,
    random,
    schedules,
)
from moco_keras import (
    losses as contrastive,
)

FIXTURE = pytorch.load("training")


def make_model(head, queue_size, temperature, symmetric=False, splits=1):
    inputs = x = keras.Input((8, 8, 3))
    for filters, strides in ((8, 1), (16, 2)):
        x = keras.layers.Conv2D(filters, 3, strides, use_bias=False)(x)
        x = keras.layers.ReLU()(SplitBatchNormalization(splits)(x))
    encoder = build_encoder(keras.Model(inputs, x), 8, 5, head=head)
    model = MoCo(
        encoder,
        queue_size=queue_size,
        momentum=0.9,
        temperature=temperature,
        symmetric=symmetric,
    )
    rate = schedules.EpochCosine(0.05, steps_per_epoch=4, epochs=3)
    model.compile(optimizers.SGD(rate, momentum=0.9, l2=0.01))
    return model


def start_from(model, initial):
    for encoder in (model.query_encoder, model.key_encoder):
        encoder.set_weights([pytorch.to_keras(w) for w in initial.values()])
    model.queue.keys.assign(FIXTURE["queue"][: model.queue.size])


def train(model, *callbacks):
    """Trains on the twelve batches; returns their losses."""
    views = FIXTURE["views"].astype("float32").swapaxes(0, 1)
    batches = tf.data.Dataset.from_tensor_slices(tuple(views))
    # One step an epoch, because Keras reports the mean loss of an epoch.
    history = model.fit(
        batches, epochs=12, steps_per_epoch=1, verbose=0, callbacks=callbacks
    )
    return history.history["loss"]


def assert_same_end(model, expected):
    for name in ("query", "key"):
        encoder = getattr(model, f"{name}_encoder")
        weights = pytorch.part(expected, name)
        for w, (weight_name, value) in zip(
            encoder.weights, weights.items(), strict=True
        ):
            np.testing.assert_allclose(
                w,
                pytorch.to_keras(value),
                rtol=0,
                atol=1e-5,
                err_msg=weight_name,
            )
    np.testing.assert_allclose(
        model.queue.keys, expected["queue"], rtol=0, atol=1e-5
    )
    assert int(model.queue.pointer) == expected["pointer"]


CASES = {
    "v1": {"head": "linear", "queue_size": 40, "temperature": 0.07},
    "v2": {"head": "mlp", "queue_size": 40, "temperature": 0.2},
    "symmetric": {
        "head": "linear",
        "queue_size": 80,
        "temperature": 0.1,
        "symmetric": True,
    },
    "indivisible": {"head": "mlp", "queue_size": 21, "temperature": 0.2},
}


@pytest.mark.parametrize("case", CASES)
def test_twelve_steps(case):
    expected = pytorch.part(FIXTURE, case)
    model = make_model(**CASES[case])
    start_from(model, pytorch.part(expected, "initial"))
    losses = train(model)
    np.testing.assert_allclose(losses, expected["losses"], rtol=1e-5)
    assert_same_end(model, expected)


@pytest.mark.usefixtures("accelerator")
def test_twelve_steps_of_shuffled_split_batch_norm(monkeypatch):
    expected = pytorch.part(FIXTURE, "split")
    model = make_model("linear", 40, 0.1, splits=2)
    start_from(model, pytorch.part(expected, "initial"))
    # Eagerly, so that each step gets the order it had in PyTorch.
    model.run_eagerly = True
    monkeypatch.setattr(
        random,
        "permutation",
        lambda *_: FIXTURE["orders"][int(model.optimizer.iterations)],
    )
    losses = train(model)
    np.testing.assert_allclose(losses, expected["losses"], rtol=1e-5)
    assert_same_end(model, expected)


def with_loss_scale(optimizer, initial_scale):
    return keras.optimizers.LossScaleOptimizer(
        optimizer, initial_scale=initial_scale
    )


def recorded(calls):
    """`fused_info_nce`, recording (q, k, keys, temperature, losses)."""

    def note(*values):
        calls.append(tuple(map(np.array, values)))

    def call(*arguments):
        values, correct = contrastive.fused_info_nce(*arguments)
        tf.numpy_function(note, [*arguments, values], [])
        return values, correct

    return call


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("case", CASES)
def test_twelve_steps_in_mixed_precision(case, policy, monkeypatch):
    keras.config.set_dtype_policy(policy)
    expected = pytorch.part(FIXTURE, case)
    model = make_model(**CASES[case])
    if policy == "mixed_float16":
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        # Keras starts at a scale of 2^15, at which gradients of a batch of 8
        # overflow. A skipped step would not match float32.
        model.compile(with_loss_scale(model.optimizer.inner_optimizer, 2**12))
    start_from(model, pytorch.part(expected, "initial"))
    model.jit_compile = False  # XLA cannot call the spy
    calls = []
    monkeypatch.setattr(moco, "fused_info_nce", recorded(calls))
    queries = [[v.numpy() for v in model.trainable_variables]]
    remember = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: queries.append(
            [v.numpy() for v in model.trainable_variables]
        )
    )
    losses = train(model, remember)
    np.testing.assert_allclose(losses, expected["losses"], rtol=0.02)
    assert len(calls) >= 12
    for q, k, queue, temperature, losses in calls:
        for rows in (q, k):
            lengths = np.linalg.norm(rows, axis=1)
            np.testing.assert_allclose(lengths, 1, rtol=0, atol=1e-6)
        assert {x.dtype for x in (q, k, queue, losses)} == {np.dtype("float32")}
        np.testing.assert_allclose(
            losses, reference.info_nce(q, k, queue, temperature), rtol=1e-5
        )
    assert {v.dtype for v in model.key_encoder.weights} == {"float32"}
    # The momentum update loses nothing to the lower precision.
    average = queries[0]
    for weights in queries[1:]:
        average = [
            0.9 * k + 0.1 * q for k, q in zip(average, weights, strict=True)
        ]
    keys = model.key_encoder.trainable_variables
    for k, value in zip(keys, average, strict=True):
        np.testing.assert_allclose(k, value, rtol=1e-5, atol=1e-6)


def test_an_overflowing_step_is_skipped_and_training_continues():
    keras.config.set_dtype_policy("mixed_float16")
    model = make_model(**CASES["v1"])
    model.compile(with_loss_scale(model.optimizer.inner_optimizer, 2.0**30))
    losses = train(model)
    assert np.isfinite(losses).all()
    assert model.optimizer.dynamic_scale < 2.0**30
    # Every step's keys were enqueued.
    assert int(model.queue.pointer) == 12 * 8 % 40
    for v in model.weights:
        assert np.isfinite(v.numpy()).all(), v.path
