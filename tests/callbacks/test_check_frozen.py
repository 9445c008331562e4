import keras
import numpy as np
import pytest

from moco_keras import SplitBatchNormalization, build_classifier, optimizers
from moco_keras.callbacks import CheckFrozen
from moco_keras.models import model_state

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit(model, images, optimizer=None, epochs=2):
    model.compile(optimizer or optimizers.SGD(0.1), LOSS)
    return model.fit(
        images,
        np.arange(len(images)) % 3,
        epochs=epochs,
        verbose=0,
        callbacks=[CheckFrozen()],
    )


@pytest.fixture
def linear(make_encoder):
    return build_classifier(make_encoder(), 3, trainable="head")


def norm_of(model):
    (norm,) = (
        layer
        for layer in model_state.layers(model)
        if isinstance(layer, SplitBatchNormalization)
    )
    return norm


def test_a_linear_classifier_passes(linear, images):
    before = linear.layers[-1].kernel.numpy()
    assert len(fit(linear, images).history["loss"]) == 2
    assert not np.array_equal(linear.layers[-1].kernel, before)


def test_a_second_training_run_begins_anew(linear, images):
    """What changed between the two was changed on purpose."""
    check = CheckFrozen()
    linear.compile(optimizers.SGD(0.1), LOSS)
    for _ in range(2):
        norm_of(linear).gamma.assign_add(np.ones(6))
        linear.fit(images, np.zeros(16), epochs=1, verbose=0, callbacks=[check])


def test_moving_statistics_that_change_are_named(linear, images):
    """Of a batch norm that runs in training mode."""
    leaky = keras.Model(linear.inputs, linear.outputs)
    norm_of(leaky).trainable = True
    # So that its weights stay as they are.
    still = {norm_of(leaky).name: 0}
    with pytest.raises(ValueError) as raised:
        fit(leaky, images, optimizers.SGD(0.1, multipliers=still))
    message = str(raised.value)
    path = norm_of(leaky).path
    assert "must stay as it is. Received, after epoch 1" in message
    assert f"{path}/moving_mean, {path}/moving_variance." in message
    assert 'build_classifier(..., trainable="head")' in message
    assert "gamma" not in message


def test_weights_that_change_are_named(make_encoder, images):
    model = build_classifier(make_encoder(), 3)
    with pytest.raises(ValueError, match="epoch 1.*conv2d.*and 3 more"):
        fit(model, images)


def test_a_change_in_a_later_epoch_is_found(linear, images):
    gamma = norm_of(linear).gamma

    def change(epoch, logs):
        if epoch == 1:
            # The least that float32 can tell.
            gamma.assign(np.nextafter(gamma.numpy(), 2, dtype="float32"))

    linear.compile(optimizers.SGD(0.1), LOSS)
    with pytest.raises(ValueError, match="after epoch 2.*gamma"):
        linear.fit(
            images,
            np.zeros(16),
            epochs=3,
            verbose=0,
            callbacks=[
                keras.callbacks.LambdaCallback(on_epoch_begin=change),
                CheckFrozen(),
            ],
        )


def test_random_states_must_not_change_either(images):
    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(x))
    outputs = keras.layers.Dense(3, name="logits")(x)
    with pytest.raises(ValueError, match="seed_generator_state"):
        fit(keras.Model(inputs, outputs), images)


def test_a_model_without_the_linear_layer_is_refused(images):
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="layer called 'logits'.*dense"):
        fit(model, images)
