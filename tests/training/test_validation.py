"""The loss of held-out images, whose computation changes nothing."""

import keras
import numpy as np
import pytest
import reference
import replicas
import tensorflow as tf

from moco_keras import Checkpoint, MoCo, augmentations, data, optimizers


@pytest.fixture
def views(images):
    return images.astype("float32"), images[..., ::-1].astype("float32")


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    metrics = {id(v) for v in model.metrics_variables}
    return [
        keras.ops.convert_to_numpy(v) for v in variables if id(v) not in metrics
    ]


def encoded(encoder, images):
    rows = encoder(images, training=False).numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_loss_and_accuracy_match_the_paper(
    make_model, views, symmetric, batch_size
):
    """With moving statistics, the current queue, and every image."""
    model = make_model(symmetric=symmetric)
    model.fit(views, batch_size=8, epochs=2, verbose=0)
    keys, temperature = model.queue.keys.numpy(), model.temperature
    before = state(model)
    losses, hits = 0.0, []
    for im_q, im_k in (views, views[::-1])[: 1 + symmetric]:
        q = encoded(model.query_encoder, im_q)
        k = encoded(model.key_encoder, im_k)
        losses += reference.info_nce(q, k, keys, temperature)
        hits += list(np.sum(q * k, axis=1) > np.max(q @ keys.T, axis=1))
    loss, accuracy = model.evaluate(views, batch_size=batch_size, verbose=0)
    assert loss == pytest.approx(losses.mean(), rel=1e-5)
    assert accuracy == pytest.approx(np.mean(hits), rel=1e-6)
    logs = model.test_on_batch(views, return_dict=True)
    assert logs["loss"] == pytest.approx(loss, rel=1e-5)
    for value, old in zip(state(model), before, strict=True):
        np.testing.assert_array_equal(value, old)


@pytest.mark.slow
def test_validation_does_not_change_training(make_model, images):
    """Nor the random states of the augmenter."""
    results = []
    for validation_data in (None, images[:6], (images[:6], np.zeros(6))):
        keras.utils.set_random_seed(3)
        model = make_model()
        history = model.fit(
            images,
            batch_size=4,
            epochs=2,
            validation_data=validation_data,
            verbose=0,
        ).history
        results.append((state(model), history))
    (expected, without), *others = results
    for values, history in others:
        for value, old in zip(values, expected, strict=True):
            np.testing.assert_array_equal(value, old)
        assert history["loss"] == without["loss"]
        assert len(history["val_loss"]) == 2
    assert others[0][1] == others[1][1]


def test_the_views_are_the_same_every_time(make_model, images):
    model = make_model()
    first = model.evaluate(images, batch_size=8, verbose=0)
    assert model.evaluate(images, batch_size=8, verbose=0) == first
    # But they differ from batch to batch.
    twice = np.concatenate([images[:8]] * 2)
    once = model.evaluate(images[:8], batch_size=8, verbose=0)
    assert model.evaluate(twice, batch_size=8, verbose=0)[0] != once[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [
        lambda x: x,
        lambda x: tf.data.Dataset.from_tensor_slices(x).batch(6),
        lambda x: tf.data.Dataset.from_tensor_slices({"image": x}).batch(8),
        lambda x: tf.data.Dataset.from_tensor_slices((x, x[:, 0, 0, 0])).batch(
            8
        ),
    ],
    ids=["array", "images", "dicts", "labelled"],
)
def test_evaluate_accepts_all_forms_of_images(make_model, images, form):
    model = make_model()
    loss, accuracy = model.evaluate(form(images), verbose=0)
    assert 0 < loss < 20 and 0 <= accuracy <= 1


@pytest.mark.slow
def test_a_stream_is_evaluated_to_its_end(make_model, textures_dir):
    stream = data.read("textures", data_dir=textures_dir, examples=13)
    views = data.two_views(stream, augmentations.crop_and_flip(8), 4)
    model = make_model()
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_test_batch_end=lambda batch, logs: seen.append(batch)
    )
    loss = model.evaluate(views, callbacks=[watch], verbose=0)
    assert seen == [0, 1, 2]
    assert model.evaluate(views, verbose=0) == loss


@pytest.mark.slow
def test_keras_callbacks_can_monitor_val_loss(make_model, images, tmp_path):
    model = make_model(optimizer=optimizers.SGD(0.0))
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", monitor="val_loss", save_best_only=True
    )
    stop = keras.callbacks.EarlyStopping("val_loss", patience=1)
    history = model.fit(
        images,
        batch_size=8,
        epochs=9,
        validation_split=0.25,
        callbacks=[best, stop, Checkpoint(tmp_path / "run")],
        verbose=0,
    ).history
    assert len(history["val_loss"]) < 9
    loaded = keras.saving.load_model(tmp_path / "best.keras")
    held_out = loaded.evaluate(images[12:], batch_size=8, verbose=0)
    assert held_out[0] == pytest.approx(min(history["val_loss"]), rel=1e-6)


def test_validation_split_takes_the_last_images(make_model, images):
    model = make_model()
    history = model.fit(
        images, batch_size=4, validation_split=0.25, verbose=0
    ).history
    assert int(model.queue.pointer) == 12
    held_out = model.evaluate(images[12:], batch_size=4, verbose=0)
    assert held_out[0] == pytest.approx(history["val_loss"][0], rel=1e-6)


@pytest.mark.parametrize(
    ("share", "form", "message"),
    [
        (-0.5, lambda x: x, "validation_split=-0.5, 16 images"),
        (1.0, lambda x: x, "validation_split=1.0"),
        (
            0.2,
            lambda x: tf.data.Dataset.from_tensor_slices(x).batch(4),
            "with arrays.*Dataset.*validation_data",
        ),
    ],
)
def test_bad_splits_are_refused(make_model, images, share, form, message):
    with pytest.raises(ValueError, match=message):
        make_model().fit(form(images), validation_split=share, verbose=0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x: x.astype("float32"), "dtype=float32"),
        (lambda x: x[0], "shape"),
        (
            lambda x: tf.data.Dataset.from_tensor_slices(x).batch(4).repeat(),
            "`validation_steps` must be given",
        ),
        (
            lambda x: tf.data.Dataset.from_tensor_slices(x).batch(4).take(0),
            "empty",
        ),
    ],
)
def test_bad_validation_data_is_refused_before_any_step(
    make_model, images, bad, message
):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        model.fit(images, batch_size=8, validation_data=bad(images), verbose=0)
    assert int(keras.ops.convert_to_numpy(model.steps)) == 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"validation_freq": 0}, "validation_freq=0"),
        ({"validation_steps": 1.5}, "validation_steps=1.5"),
        ({"validation_steps": 0}, "validation_steps=0"),
        ({"validation_batch_size": 0}, "validation_batch_size=0"),
        ({"initial_epoch": -1}, "initial_epoch=-1"),
    ],
)
def test_bad_numbers_are_refused_before_any_step(
    make_model, images, kwargs, message
):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        model.fit(
            images, batch_size=8, validation_data=images, verbose=0, **kwargs
        )
    assert int(keras.ops.convert_to_numpy(model.steps)) == 0


def test_numpy_numbers_are_accepted(make_model, images):
    history = (
        make_model()
        .fit(
            images,
            batch_size=np.int64(8),
            epochs=np.int64(2),
            validation_data=images,
            validation_freq=np.int64(2),
            verbose=0,
        )
        .history
    )
    assert len(history["val_loss"]) == 1


def test_settings_apply_from_the_next_evaluation(make_model, views):
    model = make_model()
    loss = model.evaluate(views, verbose=0)[0]
    model.symmetric = True
    # Each image's two losses are added.
    other = model.evaluate(views[::-1], verbose=0)[0]
    model.symmetric = False
    swapped = model.evaluate(views[::-1], verbose=0)[0]
    assert other == pytest.approx(loss + swapped, rel=1e-5)


def test_sample_weights_are_refused(make_model, images):
    with pytest.raises(ValueError, match="sample_weight=2"):
        make_model().evaluate(images, sample_weight=2)


def test_evaluation_needs_an_augmenter(make_encoder, images):
    model = MoCo(make_encoder(), queue_size=32)
    model.compile(optimizer=optimizers.SGD(0.1))
    with pytest.raises(ValueError, match="needs an `augmenter`"):
        model.evaluate(images, verbose=0)


def test_evaluation_before_the_first_step(images):
    """The augmenter was never called, and the optimizer is not built."""
    model = replicas.make_model()
    loss, _ = model.evaluate(images, verbose=0)
    assert np.isfinite(loss)
