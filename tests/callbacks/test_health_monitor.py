"""The monitor measures what it says, and changes nothing."""

import csv
import warnings

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

import moco_keras
from moco_keras import Checkpoint, callbacks, distribution, optimizers
from moco_keras.callbacks.view_sample import ViewSample
from moco_keras.data.image_sets import ImageSet
from moco_keras.evaluation import health

COLUMNS = {
    "equal_views",
    "copies", "blank", "queue_ratio", "queue_age", "key_distance", "alignment",
    "uniformity", "rank_features", "rank_projections", "deviation_features",
    "deviation_projections", "similarity_features", "similarity_projections",
    "positive_05", "positive_50", "positive_95", "accuracy", "negative_05",
    "negative_50", "negative_95",
}  # fmt: skip


def health_of(history):
    return {
        name.removeprefix("health_"): values
        for name, values in history.items()
        if name.startswith("health_")
    }


@pytest.fixture
def views(images):
    return images.astype("float32"), images[..., ::-1].astype("float32")


def fit(model, images, monitor, epochs=2, **kwargs):
    kwargs = {"batch_size": 8, "verbose": 0, **kwargs}
    return model.fit(
        images, epochs=epochs, callbacks=[monitor], **kwargs
    ).history


def encoded(encoder, images):
    return np.asarray(encoder(images, training=False))


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("count", [6, 16])
def test_measures_are_those_of_the_views_in_inference_mode(
    make_model, views, count
):
    model = make_model(ready_views=True)
    monitor = callbacks.HealthMonitor(views, sample_size=count)
    found = health_of(fit(model, views, monitor))
    rows = np.sort(np.random.default_rng(0).permutation(16)[:count])
    im_q, im_k = (x[rows] for x in views)
    raw = encoded(moco_keras.backbone(model.query_encoder), im_q)
    raw_q = encoded(model.query_encoder, im_q)
    q, k = unit(raw_q), unit(encoded(model.key_encoder, im_k))
    keys = model.queue.keys.numpy()
    positives = np.sum(q * k, axis=1)
    weights = [
        np.concatenate([v.numpy().ravel() for v in encoder.trainable_variables])
        for encoder in (model.query_encoder, model.key_encoder)
    ]
    apart = np.linalg.norm(weights[0] - weights[1])
    expected = {
        "alignment": reference.alignment(q, k),
        "uniformity": reference.uniformity(q),
        "rank_features": reference.rank_me(raw),
        "rank_projections": reference.rank_me(raw_q),
        "deviation_features": reference.deviation(unit(raw)),
        "deviation_projections": reference.deviation(q),
        "similarity_features": reference.mean_similarity(unit(raw)),
        "similarity_projections": reference.mean_similarity(q),
        "positive_50": np.median(positives),
        "negative_05": np.percentile(q @ keys.T, 5),
        "negative_95": np.percentile(q @ keys.T, 95),
        "accuracy": reference.found_among(q, k, count - 1),
        "key_distance": apart / np.linalg.norm(weights[0]),
        "queue_ratio": 32 / 16,
        "queue_age": 4,  # steps of 8 keys
        "equal_views": 0,
    }
    for name, value in expected.items():
        assert found[name][-1] == pytest.approx(value, rel=1e-5), name
    assert set(found) == COLUMNS - {"copies", "blank"}
    np.testing.assert_allclose(monitor.similarities[0], positives, rtol=1e-5)
    assert monitor.similarities[1].shape == (count, 32)


def test_views_are_the_same_every_time(make_model, images):
    """Whatever was drawn meanwhile."""
    model, found = make_model(), []
    for _ in range(2):
        sample = ViewSample(images, 16)
        sample.set_model(model)
        sample.encode()
        found.append(sample._views)
        keras.utils.set_random_seed(8)
        model.two_views(images)
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0][0] != found[0][1]).any(axis=(1, 2, 3)).all()


def test_the_run_is_the_same_with_and_without(make_model, images):
    results = []
    for monitored in (True, False):
        keras.utils.set_random_seed(3)
        model = make_model(splits=2)
        watch = [callbacks.HealthMonitor(images)] * monitored
        history = model.fit(
            images, batch_size=8, epochs=3, verbose=0, callbacks=watch
        ).history
        state = [keras.ops.convert_to_numpy(v) for v in model.variables]
        results.append((history["loss"], state))
    assert results[0][0] == results[1][0]
    for with_it, without in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_array_equal(with_it, without)


@pytest.mark.parametrize(
    ("of_epoch", "expected"),
    [(None, [1, 2, 3, 4, 8, 9]), (32, [1, 2, 3, 4, 6, 8, 9])],
)
def test_epochs_at_the_beginning_and_then_some_are_measured(
    of_epoch, expected, make_model, views, tmp_path
):
    """One of as many as train on sixteen times the sample."""
    monitor = callbacks.HealthMonitor(
        views, sample_size=4, images_per_epoch=of_epoch
    )
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    make_model(ready_views=True).fit(
        views, batch_size=8, epochs=9, verbose=0, callbacks=[monitor, log]
    )
    with (tmp_path / "log.csv").open() as file:
        values = [r["health_alignment"] for r in csv.DictReader(file)]
    measured = [i + 1 for i, x in enumerate(values) if x != "NA"]
    assert measured == expected


def test_a_large_set_is_measured_in_every_epoch(make_model, views):
    monitor = callbacks.HealthMonitor(views, num_images=1000)
    history = fit(make_model(ready_views=True), views, monitor, epochs=5)
    assert len(history["health_alignment"]) == 5
    assert history["health_queue_ratio"] == [32 / 1000] * 5


def test_labels_give_the_share_of_false_negatives(make_model, views):
    labels = np.arange(16)[:, None] % 4  # as in `keras.datasets`
    model = make_model(ready_views=True)
    history = fit(model, views, callbacks.HealthMonitor(views, labels))
    assert history["health_same_class"] == [0.25, 0.25]
    monitor = callbacks.HealthMonitor(views, np.full(16, -1))
    assert "same_class" not in monitor._constant


def test_the_queue_age_counts_keys_of_both_directions(make_model, views):
    for symmetric, ages in ((False, [2, 4, 4]), (True, [2, 2, 2])):
        monitor = callbacks.HealthMonitor(views)
        model = make_model(symmetric=symmetric, ready_views=True)
        history = fit(model, views, monitor, epochs=3)
        assert history["health_queue_age"] == ages
        assert monitor.setup.keys_per_image == 1 + symmetric


def test_another_method_without_a_queue_is_measured(make_encoder, images):
    from moco_v3 import MoCoV3

    predictor = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    model = MoCoV3(make_encoder(), predictor)
    model.compile(optimizer=optimizers.SGD(0.1))
    found = health_of(fit(model, images, callbacks.HealthMonitor(images)))
    of_queue = {"queue_ratio", "queue_age", "accuracy"}
    assert set(found) == {
        x for x in COLUMNS - of_queue if not x.startswith("negative")
    }


def test_an_encoder_in_half_precision_is_measured_in_float32(make_model, views):
    keras.config.set_dtype_policy("mixed_bfloat16")
    monitor = callbacks.HealthMonitor(views)
    found = fit(make_model(ready_views=True), views, monitor, epochs=1)
    assert set(health_of(found)) == COLUMNS - {"copies", "blank"}
    assert monitor.similarities[0].dtype == np.float32
    assert monitor.similarities[0].max() <= 1 + 1e-6


@pytest.mark.slow
def test_a_resumed_run_measures_what_one_run_does(make_model, views, tmp_path):
    """From the end of an epoch, and from within one."""

    def run(epochs, folder, *others):
        keras.utils.set_random_seed(5)
        watched = [callbacks.HealthMonitor(views), *others]
        history = make_model(ready_views=True).fit(
            views,
            batch_size=8,
            epochs=epochs,
            verbose=0,
            callbacks=[*watched, Checkpoint(tmp_path / folder, "1 step")],
        )
        return {k: v[-1:] for k, v in health_of(history.history).items()}

    def stop(batch, logs):
        if batch == 0:
            raise KeyboardInterrupt

    whole = run(3, "whole")
    run(2, "interrupted")
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
    with pytest.raises(KeyboardInterrupt):
        run(3, "interrupted", watch)
    assert run(3, "interrupted") == whole


def test_progress_bars_leave_the_columns_out(make_model, views, capsys):
    model = make_model(ready_views=True)
    monitor = callbacks.HealthMonitor(views)
    history = fit(model, views, monitor, epochs=1, verbose=2)
    assert "health_alignment" in history
    out = capsys.readouterr().out
    assert out.count("contrastive_accuracy") == 1 and "health" not in out
    # With a bar of the user's there is no other.
    bar = keras.callbacks.ProgbarLogger()
    model.fit(views, batch_size=8, verbose=2, callbacks=[bar])
    assert capsys.readouterr().out.count("contrastive_accuracy") == 1


def test_an_alarm_is_told_once_when_the_run_begins(make_model, views):
    monitor = callbacks.HealthMonitor(views)
    model = make_model(queue_size=64, ready_views=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, views, monitor, epochs=2)
        fit(model, views, monitor, epochs=2)
    told = [str(w.message) for w in caught if "too long" in str(w.message)]
    assert len(told) == 1
    assert told[0].startswith("Health, queue too long: The queue of 64 keys")
    assert monitor.alarms[0].kind == "queue too long"
    assert monitor.alarms[0].epoch == 0


def test_an_alarm_stops_every_run_if_it_is_to(make_model, views):
    monitor = callbacks.HealthMonitor(views, on_alarm="stop")
    model = make_model(queue_size=64, ready_views=True)
    for _ in range(2):
        with pytest.raises(ValueError, match='too long.*give on_alarm="warn"'):
            fit(model, views, monitor)
    assert int(model.steps) == 0


def collapse(monkeypatch):
    """Has the deviation be that of a collapse."""
    monkeypatch.setattr(health, "deviation", lambda x: 0.01)


def test_an_alarm_of_an_epoch_is_told_when_all_have_logged_it(
    make_model, views, monkeypatch
):
    collapse(monkeypatch)
    monitor = callbacks.HealthMonitor(views, num_images=1000)
    seen = []
    log = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(
            logs["health_deviation_projections"]
        )
    )
    with pytest.warns(UserWarning, match="Health, collapse: .*0.010"):
        make_model(ready_views=True).fit(
            views, batch_size=8, epochs=3, verbose=0, callbacks=[monitor, log]
        )
    assert seen == [0.01] * 3
    assert [(a.kind, a.epoch) for a in monitor.alarms] == [("collapse", 2)]


def test_a_stopped_run_is_saved_and_resumes_if_asked_to(
    make_model, views, monkeypatch, tmp_path
):
    """Long before the next checkpoint would be due."""
    collapse(monkeypatch)
    logged = []

    def run(on_alarm):
        monitor = callbacks.HealthMonitor(
            views, num_images=1000, on_alarm=on_alarm
        )
        monitor.resume(logged)
        log = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: logged.append(
                {"epoch": epoch + 1, **logs}
            )
        )
        model = make_model(ready_views=True)
        model.fit(
            views,
            batch_size=8,
            epochs=4,
            verbose=0,
            callbacks=[monitor, log, Checkpoint(tmp_path, "60 minutes")],
        )
        return model

    for _ in range(2):  # the second time before it trains
        with pytest.raises(ValueError, match="Health, collapse"):
            run("stop")
        assert [row["epoch"] for row in logged] == [1, 2]
    # A process that ended with the last epoch may not have told.
    with pytest.warns(UserWarning, match="Health, collapse"):
        assert int(run("warn").steps) == 8
    assert [row["epoch"] for row in logged] == [1, 2, 3, 4]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Health")
        run("warn")  # now it was told


def test_an_encoder_that_diverged_is_an_alarm_and_no_error(make_model, images):
    model = make_model(optimizer=optimizers.SGD(1e30))
    monitor = callbacks.HealthMonitor(images, num_images=1000)
    with pytest.warns(UserWarning, match="divergence: .*not finite"):
        history = fit(model, images, monitor)
    assert "health_alignment" not in history
    assert "health_key_distance" in history


def test_equal_views_are_found(make_model, images):
    views = images.astype("float32")
    monitor = callbacks.HealthMonitor((views, views))
    model = make_model(queue_size=16, ready_views=True)
    with (
        pytest.warns(UserWarning, match="Health, equal views: .*100%"),
        pytest.warns(UserWarning, match="views of an image must differ"),
    ):
        fit(model, (views, views), monitor, epochs=1)


def test_views_of_pixels_are_kept_as_bytes(make_model, images):
    """A quarter of the memory; others keep what is after the point."""
    model = make_model()
    sample = ViewSample(images, 16)
    sample.set_model(model)
    sample.encode()
    assert [x.dtype for x in sample._views] == ["uint8"] * 2
    exact = model.fixed_views(images, 0)
    for kept, view in zip(sample._views, exact, strict=True):
        np.testing.assert_allclose(kept, np.clip(view, 0, 255), atol=0.5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"on_alarm": "ring"}, 'warn" or "stop". Received: on_alarm=.ring'),
        ({"sample_size": 0}, "sample_size=0"),
        ({"sample_size": 1}, "two or more.*sample_size=1"),
        ({"num_images": 1.5}, "num_images=1.5"),
        ({"images_per_epoch": 0}, "images_per_epoch=0"),
        ({"labels": [0]}, "one for each image. Received: 1 of 16"),
        ({"copies": 2.0}, "copies=2.0"),
        ({"images": np.zeros((1, 8, 8, 3), "uint8")}, "two or more.*1"),
        (
            {"images": (np.zeros((4, 8, 8, 3)), np.zeros((3, 8, 8, 3)))},
            "Received: 4 and 3",
        ),
        (
            {"images": (np.zeros((4, 8, 8, 3), "uint8"), np.zeros(4, "int64"))},
            "pair of views must be two float batches",
        ),
        (
            {
                "images": tf.data.Dataset.from_tensors(
                    np.zeros((4, 8, 8, 3), "uint8")
                )
            },
            "must be an array.*data set.*num_images",
        ),
        ({"images": np.zeros((16, 8, 8), "uint8")}, "images in gray"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message, images):
    with pytest.raises(ValueError, match=message):
        callbacks.HealthMonitor(**{"images": images, **kwargs})


def test_images_must_be_those_of_the_encoder(make_model, images):
    model = make_model()
    monitor = callbacks.HealthMonitor(images.astype("float32"))
    with pytest.raises(ValueError, match="dtype=float32"):
        model.fit(images, batch_size=8, verbose=0, callbacks=monitor)


def test_images_of_other_kinds_are_taken(images, views):
    labels = np.arange(16) % 2
    of_set = ImageSet(images, labels, ["a", "b"], "source")
    of_views = [tf.constant(x) for x in views]
    for given, known in (
        (images, {"copies"}),
        (of_set, {"copies", "same_class"}),
        (tf.constant(images), {"copies"}),
        (of_views, set()),
    ):
        monitor = callbacks.HealthMonitor(given, sample_size=5)
        assert set(monitor._constant) == known
        kept = keras.tree.flatten(monitor._sample.images)
        expected = views if given is of_views else [images]
        for array, whole in zip(kept, expected, strict=True):
            np.testing.assert_array_equal(array, whole[monitor._sample.rows])


def test_copies_of_a_sample_are_not_those_of_all(make_model, images):
    """Of whom it would find few."""
    monitor = callbacks.HealthMonitor(images, num_images=1000)
    assert "copies" not in monitor._constant
    monitor = callbacks.HealthMonitor(images, num_images=1000, copies=0.5)
    monitor.set_model(make_model())
    with pytest.warns(UserWarning, match="duplicates: 50.0%"):
        monitor.on_train_begin()


def test_two_images_are_not_collapsed(make_model, views):
    """Whose rank cannot be more than two."""
    few = tuple(x[:2] for x in views)
    monitor = callbacks.HealthMonitor(few, on_alarm="stop")
    model = make_model(queue_size=2, ready_views=True)
    history = fit(model, few, monitor, batch_size=2, epochs=3)
    assert max(history["health_rank_projections"]) <= 2.001


def test_a_monitor_forgets_what_it_knew_of_another_model(make_model, views):
    monitor = callbacks.HealthMonitor(views, on_alarm="stop")
    with pytest.raises(ValueError, match="too long"):
        fit(make_model(queue_size=64, ready_views=True), views, monitor)
    fit(make_model(queue_size=16, ready_views=True), views, monitor)
    assert [a.kind for a in monitor.alarms if a.epoch == 0] == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda images, views: images, "must be pairs of views.*no augmenter"),
        (
            lambda images, views: tuple(x[:, :6] for x in views),
            "encoder takes views of shape .8, 8, 3.. Received.*.6, 8, 3.",
        ),
    ],
)
def test_what_the_model_cannot_view_is_refused_before_training(
    given, message, make_model, images, views
):
    monitor = callbacks.HealthMonitor(given(images, views))
    model = make_model(ready_views=True)
    with pytest.raises(ValueError, match=message):
        fit(model, views, monitor)
    assert int(model.steps) == 0


def test_an_augmenter_that_only_runs_eagerly_is_called_so(make_encoder, images):
    def flip(images):  # `.numpy()` is of eager tensors alone
        return tf.constant(np.asarray(images.numpy()[:, ::-1], "float32"))

    model = moco_keras.MoCo(make_encoder(), flip, queue_size=16)
    model.compile(optimizer=optimizers.SGD(0.1), run_eagerly=True)
    monitor = callbacks.HealthMonitor(images)
    with pytest.warns(UserWarning, match="views of an image must differ"):
        history = fit(model, images, monitor, epochs=1)
    assert history["health_equal_views"] == [1.0]


def test_workers_stop_together(make_model, views, monkeypatch):
    """If another worker alone has found an alarm."""
    asked = []

    def all_reduce_sum(counts, strategy):
        asked.append(counts)
        return [1] if len(asked) == 3 else counts

    monkeypatch.setattr(distribution, "is_multi_worker", lambda strategy: True)
    monkeypatch.setattr(distribution, "all_reduce_sum", all_reduce_sum)
    model = make_model(queue_size=16, ready_views=True)
    monitor = callbacks.HealthMonitor(views, num_images=1000, on_alarm="stop")
    monitor.set_model(model)
    monitor.set_params({"epochs": 3})
    monitor.on_train_begin()
    monitor.on_epoch_begin(0)
    monitor.on_train_batch_begin(0)
    model.train_on_batch(tuple(x[:8] for x in views))
    monitor.on_train_batch_end(0)
    logs = {"loss": 1.0, "contrastive_accuracy": 0.0}
    monitor.on_epoch_end(0, logs)
    assert model.stop_training and asked == [[0]] * 3
    asked[2:] = []
    with pytest.raises(ValueError, match="another worker has found"):
        monitor.on_train_end()
