"""What users change between steps, and its effect on the next step."""

import warnings

import keras
import numpy as np
import pytest
import reference
import replicas
import tensorflow as tf

from moco_keras import MoCo, MomentumUpdate, distribution, optimizers

BATCH = replicas.BATCH


def views(steps=1):
    return replicas.ready_views(replicas.make_images(steps * BATCH))


@pytest.fixture
def model():
    return replicas.make_model(2, ready_views=True)


@pytest.mark.parametrize("name", replicas.SEQUENCES)
def test_the_key_encoder_follows_equation_2(name):
    alone = distribution.strategy("none")
    for error, moved, steps in replicas.followed(alone, name)[
        f"followed/{name}"
    ]:
        assert error < 1e-6 and moved > 0.1 and steps >= 3


def test_an_update_that_loss_scaling_skips_moves_nothing(model):
    optimizer = keras.optimizers.LossScaleOptimizer(
        optimizers.SGD(0.1), initial_scale=2.0**126
    )
    model.compile(optimizer=optimizer)
    model.temperature = 1e-3  # gradients overflow
    before = [replicas.parameters(e) for e in encoders(model)]
    model.train_on_batch(views())
    assert int(keras.ops.convert_to_numpy(optimizer.iterations)) == 0
    for encoder, values in zip(encoders(model), before, strict=True):
        for value, old in zip(
            replicas.parameters(encoder), values, strict=True
        ):
            np.testing.assert_array_equal(value, old)
    model.temperature = 0.2
    model.optimizer.dynamic_scale.assign(1.0)
    replicas.Follower().train_on_batch(model, views())
    moved = replicas.parameters(model.key_encoder)[0] - before[1][0]
    assert np.any(moved)


def encoders(model):
    return model.query_encoder, model.key_encoder


def test_accumulated_gradients_are_those_of_a_larger_batch():
    """Without batch norm, and with a queue that does not move."""
    models = [replicas.make_model(ready_views=True) for _ in range(2)]
    keys = models[0].queue.keys.numpy()
    whole, halves = models
    halves.compile(optimizers.SGD(0.1, gradient_accumulation_steps=2))
    im_q, im_k = views()
    whole.train_on_batch((im_q, im_k))
    for half in (slice(0, 8), slice(8, 16)):
        halves.queue.keys.assign(keys)
        halves.train_on_batch((im_q[half], im_k[half]))
    for value, expected in zip(
        halves.query_encoder.weights, whole.query_encoder.weights, strict=True
    ):
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6)


def test_a_new_temperature_applies_from_the_next_step(model):
    model.compile(optimizer=optimizers.SGD(0.0))
    model.momentum, model.shuffle = 1.0, "none"
    values, losses, queues = [0.2, 0.07, np.float64(1.0)], [], []

    def set_next(batch, logs):
        model.temperature = values[batch]
        queues.append(model.queue.keys.numpy())

    watch = keras.callbacks.LambdaCallback(
        on_train_batch_begin=set_next,
        on_train_batch_end=lambda batch, logs: losses.append(logs["loss"]),
    )
    im_q, im_k = views()
    q, k = (
        keras.ops.normalize(encoder(images, training=True), axis=1).numpy()
        for encoder, images in zip(encoders(model), (im_q, im_k), strict=True)
    )
    model.fit(
        tuple(np.concatenate([x] * 3) for x in (im_q, im_k)),
        batch_size=BATCH,
        shuffle=False,
        callbacks=[watch],
        verbose=0,
    )
    # A callback gets the means of the epoch so far.
    sums = np.cumsum(
        [
            reference.info_nce(q, k, queue, float(t)).mean()
            for t, queue in zip(values, queues, strict=True)
        ]
    )
    np.testing.assert_allclose(losses, sums / [1, 2, 3], rtol=1e-5)
    assert model.temperature == 1.0 and type(model.temperature) is float
    assert model.get_config()["temperature"] == 1.0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("momentum", 1.5, r"in \[0, 1\].*momentum=1.5"),
        ("momentum", float("nan"), r"in \[0, 1\].*momentum=nan"),
        ("momentum", "0.9", "`momentum` must be a number"),
        ("temperature", 0.0, "positive.*temperature=0.0"),
        ("temperature", float("inf"), "positive.*temperature=inf"),
        ("temperature", None, "`temperature` must be a number"),
    ],
)
def test_assigned_values_are_checked(model, name, value, message):
    before = getattr(model, name)
    with pytest.raises(ValueError, match=message):
        setattr(model, name, value)
    assert getattr(model, name) == before


def test_other_settings_apply_from_the_next_call(model):
    model.train_on_batch(views())
    assert int(model.queue.pointer) == 16
    model.symmetric = True
    model.train_on_batch(views())
    assert int(model.queue.pointer) == (16 + 32) % 37


def test_train_on_batch_returns_each_number_once(model):
    loss, accuracy = model.train_on_batch(views())
    assert 0 < loss < 10 and 0 <= accuracy <= 1
    logs = model.train_on_batch(views(), return_dict=True)
    assert logs.keys() == {"loss", "contrastive_accuracy"}


def test_train_on_batch_takes_images_and_checks_them(make_model, images):
    model = make_model()
    model.train_on_batch(images, np.zeros(16))
    assert int(model.queue.pointer) == 16
    with pytest.raises(ValueError, match="dtype=float32"):
        model.train_on_batch(images.astype("float32"))
    with pytest.raises(ValueError, match="sample_weight=1"):
        model.train_on_batch(images, sample_weight=1)
    model.compile(optimizer=optimizers.SGD(0.1), steps_per_execution=2)
    with pytest.raises(ValueError, match="steps_per_execution=2"):
        model.train_on_batch(images)


def test_unfreezing_needs_a_new_compile(model):
    layer = replicas._first_layer(model)
    layer.trainable = False
    model.train_on_batch(views())  # it was not built before
    layer.trainable = True
    message = f"compiled again.*Received: {layer.name}, which"
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(views())
    model.compile(optimizer=optimizers.SGD(0.1))
    model.train_on_batch(views())


def test_freezing_in_a_callback_needs_a_new_compile(model):
    layer = replicas._first_layer(model)
    freeze = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: setattr(layer, "trainable", False)
    )
    with pytest.raises(ValueError, match="compiled again"):
        model.fit(views(), batch_size=8, epochs=2, callbacks=[freeze])


def test_the_key_encoder_is_not_moved_twice(model):
    with pytest.raises(ValueError, match="one `MomentumUpdate`.*Received: 2"):
        model.fit(views(), callbacks=[MomentumUpdate(), MomentumUpdate()])


def test_something_must_be_trainable(model):
    model.query_encoder.trainable = False
    model.compile(optimizer=optimizers.SGD(0.1))
    with pytest.raises(ValueError, match="something to train"):
        model.fit(views(), batch_size=BATCH, verbose=0)


@pytest.mark.parametrize("compiled_again", [True, False])
def test_a_frozen_batch_norm_normalizes_keys_like_queries(
    model, compiled_again
):
    """With its moving statistics, which it does not update."""
    norms = [encoder.layers[2].layers[2] for encoder in encoders(model)]
    norms[0].trainable = False
    if compiled_again:
        model.compile(optimizer=optimizers.SGD(0.1))
    before = [norm.moving_mean.numpy() for norm in norms]
    model.train_on_batch(views())
    for norm, mean in zip(norms, before, strict=True):
        np.testing.assert_array_equal(norm.moving_mean, mean)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"loss": "mse"},
        {"metrics": ["accuracy"]},
        {"weighted_metrics": ["accuracy"]},
        {"loss_weights": [1.0]},
    ],
)
def test_another_loss_is_refused_at_once(model, kwargs):
    ((name, _),) = kwargs.items()
    with pytest.raises(ValueError, match=f"own loss.*Received: {name}="):
        model.compile(optimizer=optimizers.SGD(0.1), **kwargs)


def test_empty_metrics_are_accepted(model):
    model.compile(optimizer=optimizers.SGD(0.1), loss=None, metrics=[])


def test_meaningless_arguments_are_refused_at_once(make_model, images):
    model = make_model()
    for kwargs in ({"class_weight": {0: 1.0}}, {"sample_weight": [1.0] * 16}):
        ((name, _),) = kwargs.items()
        with pytest.raises(ValueError, match=f"alike.*Received: {name}="):
            model.fit(images, batch_size=8, verbose=0, **kwargs)
    with pytest.raises(TypeError, match="workers"):
        model.fit(images, batch_size=8, workers=2)


class Noise(keras.layers.Layer):
    """Changes images only if it gets `training=True`."""

    def call(self, images, training=False):
        images = tf.cast(images, "float32")
        noise = tf.random.uniform(tf.shape(images), maxval=9.0)
        return images + noise if training else images


class Wrapper(keras.layers.Layer):
    """Holds a layer that needs `training`, and does not take it itself."""

    def __init__(self):
        super().__init__()
        self.noise = Noise()

    def call(self, images):
        return self.noise(images)


def warnings_of(model, data, **kwargs):
    """The user warnings of a call of `fit`."""
    kwargs = {"batch_size": 8, "verbose": 0, **kwargs}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        model.fit(data, **kwargs)
    return [str(w.message) for w in caught if w.category is UserWarning]


@pytest.mark.parametrize(
    "augmenter",
    [
        Noise(),
        keras.Sequential([Noise()]),
        Wrapper(),
        lambda x, training=False: Noise()(x, training=training),
    ],
    ids=["layer", "model", "around", "function"],
)
def test_augmenters_run_in_training_mode(augmenter, make_encoder, images):
    """Otherwise there would be a warning that both views are equal."""
    model = MoCo(make_encoder(), augmenter, queue_size=32)
    model.compile(optimizer=optimizers.SGD(0.1))
    assert warnings_of(model, images) == []
    assert (model.views_seen.numpy() > 0).all()


def test_equal_views_cause_one_warning(make_encoder, images):
    model = MoCo(make_encoder(), lambda x: tf.cast(x, "float32"), queue_size=32)
    model.compile(optimizer=optimizers.SGD(0.1))
    (warning,) = warnings_of(model, images, epochs=3)
    assert "must differ" in warning and "equal views" in warning


def test_rescaled_views_cause_a_warning(make_encoder, images):
    augmenter = keras.Sequential(
        [keras.layers.RandomFlip(), keras.layers.Rescaling(1 / 255)]
    )
    model = MoCo(make_encoder(), augmenter, queue_size=32)
    model.compile(optimizer=optimizers.SGD(0.1))
    (warning,) = warnings_of(model, images)
    assert "largest value is 1." in warning and "does not rescale" in warning


@pytest.mark.slow
def test_a_schedule_that_has_ended_causes_a_warning(
    make_model, images, tmp_path
):
    def schedule():
        return optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 4))

    model = make_model(optimizer=schedule())
    model.fit(images, batch_size=8, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    (warning,) = warnings_of(loaded, images)
    assert "4 steps are done" in warning and "call `compile`" in warning
    loaded.compile(optimizer=schedule())
    assert warnings_of(loaded, images) == []
    # A warm-up begins at 0, too.
    warm_up = keras.optimizers.schedules.PolynomialDecay(0.0, 9, 0.1)
    loaded.compile(optimizer=optimizers.SGD(warm_up))
    assert warnings_of(loaded, images) == []


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", [None, 2])
def test_loaded_models_train_like_the_saved_ones(images, tmp_path, accumulated):
    """Even if saved in the middle of a gradient accumulation."""
    model = replicas.make_model(2, ready_views=True)
    optimizer = optimizers.SGD(0.1, gradient_accumulation_steps=accumulated)
    model.compile(optimizer=optimizer)
    model.fit(views(3), batch_size=BATCH, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for one in (model, loaded):
        one.fit(views(3), batch_size=BATCH, verbose=0)
    for a, b in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(a, b)
