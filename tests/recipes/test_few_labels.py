import contextlib
import io
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import LogisticRegression

import moco_keras
from moco_keras import data
from moco_keras.evaluation import features, linear_probe
from moco_keras.recipes import (
    _classifier_training,
    _feature_files,
    _label_draws,
    few_labels,
)
from moco_keras.recipes.few_labels import FewLabelsSettings

# Which share what is measured once.
pytestmark = pytest.mark.xdist_group("few_labels")
HOW = {"learning_rate": 0.03, "head_multiplier": 2}
AMOUNTS = {"labels_per_class": "2,50%", "draws": 2, "steps": 3}


@pytest.fixture
def settings(small_export, labeled_folder, tmp_path):
    return {
        "encoder": str(small_export),
        "data": str(labeled_folder),
        "out": str(tmp_path / "out"),
        **AMOUNTS,
    }


def measure(settings, **changes):
    few_labels.few_labels(FewLabelsSettings(**{**settings, **changes}))


@pytest.fixture(scope="module")
def measured(small_export, write_labeled, tmp_path_factory):
    """The settings of a measurement, its results, and what it printed."""
    keras.config.set_dtype_policy("float32")  # as `seed` does, which is later
    place = tmp_path_factory.mktemp("measured")
    settings = {
        "encoder": str(small_export),
        "data": str(write_labeled(place / "labeled")),
        "out": str(place / "out"),
        **AMOUNTS,
    }
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        measure(settings)
    return settings, place / "out", printed.getvalue()


@pytest.mark.slow
def test_the_table_has_mean_and_error_of_each_method(measured):
    _, out, printed = measured
    rows = json.loads((out / "few_labels.json").read_text())
    assert [(row["labels_per_class"], row["method"]) for row in rows] == [
        (amount, method)
        for amount in (2, "50%")
        for method in ("scratch", "probe", "finetuned")
    ]
    for row in rows:
        assert 0 <= row["mean"] <= 1 and row["draws"] == 2
        assert row["standard_error"] >= 0
    assert "from scratch   frozen + probe       fine-tuned" in printed
    assert (out / "few_labels.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_probe_sees_labels_of_the_draw_and_features_alone(
    measured, small_export
):
    settings, out, _ = measured
    rows = json.loads((out / "few_labels.json").read_text())
    splits = data.read_splits(settings["data"])
    train, test = (splits[x].load(image_size=8) for x in ("train", "test"))
    encoder = moco_keras.load_encoder(small_export)
    embedded = [features.unit_rows(encoder(x.images)) for x in (train, test)]
    accuracies = []
    for seed in (0, 1):
        drawn = _label_draws.draw(
            _label_draws.Amount(count=2), train.labels, seed
        )
        chosen = linear_probe.fit(embedded[0][drawn], train.labels[drawn]).C
        probe = LogisticRegression(C=chosen, max_iter=1000)
        probe.fit(embedded[0][drawn], train.labels[drawn])
        accuracies.append(probe.score(embedded[1], test.labels))
    assert rows[1]["mean"] == pytest.approx(np.mean(accuracies))
    error = np.std(accuracies, ddof=1) / 2**0.5
    assert rows[1]["standard_error"] == pytest.approx(error)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_it_resumes_with_the_same_result(
    measured, tmp_path, monkeypatch, capsys
):
    settings, out, _ = measured
    whole = (out / "few_labels.json").read_text()
    train, calls = _classifier_training.Trainer.accuracy, []

    def stop_at_the_fourth(self, *args):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(self, *args)

    monkeypatch.setattr(
        _classifier_training.Trainer, "accuracy", stop_at_the_fourth
    )
    other = str(tmp_path / "other")
    keras.utils.set_random_seed(5)  # as in another process
    with pytest.raises(KeyboardInterrupt):
        measure(settings, out=other)
    assert "give the same command again" in capsys.readouterr().err
    keras.utils.set_random_seed(6)
    assert not (tmp_path / "other" / "few_labels.json").exists()
    measure(settings, out=other)
    assert len(calls) == 4 + 5  # eight trainings, three of them done before
    assert (tmp_path / "other" / "few_labels.json").read_text() == whole
    assert not list((tmp_path / "other").glob("*.partial*"))


def test_by_default_each_class_has_images_for_the_amounts():
    labels = np.repeat([3, 5], [60, 49])
    assert [a.name for a in _label_draws.usual(labels)] == [1, 5, 10]
    assert [a.name for a in _label_draws.usual(np.arange(9))] == [1]
    assert len(_label_draws.usual(np.repeat([0, 1], 200))) == 5


@pytest.mark.slow
def test_what_is_measured_is_not_measured_again(
    measured, tmp_path, monkeypatch
):
    settings, out, _ = measured
    settings = {**settings, "out": str(tmp_path / "out")}
    shutil.copytree(out, tmp_path / "out")
    trained, train = [], _classifier_training.Trainer.accuracy
    monkeypatch.setattr(
        _classifier_training.Trainer,
        "accuracy",
        lambda *args: trained.append(None) or train(*args),
    )
    monkeypatch.setattr(_feature_files, "_write", None)  # not called
    path = tmp_path / "out" / "few_labels.json"
    before = path.read_text()
    measure(settings)
    assert trained == [] and path.read_text() == before
    measure(settings, draws=1, steps=1)
    assert len(trained) == 4
    measure(settings)  # what other settings gave has not replaced it
    assert len(trained) == 4 and path.read_text() == before
    measure(settings, draws=3, labels_per_class="2")
    assert len(trained) == 4 + 2
    measure(settings, draws=1, labels_per_class=None)  # 12 images a class
    rows = json.loads(path.read_text())
    assert {row["labels_per_class"] for row in rows} == {1, 5, 10}


def test_a_file_of_accuracies_that_cannot_be_read_is_named(settings, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "few_labels_accuracies.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="Remove it to measure them again"):
        measure(settings)
    assert not (tmp_path / "out" / "few_labels.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": None}, "Either --run_dir must be given"),
        ({"run_dir": "x"}, "Either --run_dir must be given"),
        ({"data": None}, "--data must be given with --encoder"),
        ({"out": None}, "--out must be given with --encoder"),
        ({"labels_per_class": "13"}, "13 for the class dark one, which has 12"),
        ({"labels_per_class": "0"}, "--labels_per_class must be"),
    ],
)
def test_bad_settings(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        measure(settings, **changes)


def test_what_is_no_run_is_named(settings, tmp_path):
    with pytest.raises(FileNotFoundError, match="--run_dir must be.*labeled"):
        measure(
            settings, encoder=None, data=None, run_dir=str(tmp_path / "labeled")
        )


def test_a_folder_without_an_encoder_is_named(settings, tmp_path):
    with pytest.raises(FileNotFoundError, match="--encoder must hold an encod"):
        measure(settings, encoder=str(tmp_path / "labeled"))


def test_images_without_labels_are_refused(settings, tmp_path, labeled_folder):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, file in enumerate(labeled_folder.rglob("*.png")):
        file.rename(flat / f"{i}.png")
    with pytest.raises(ValueError, match="two classes or more, in a folder"):
        measure(settings, data=str(flat))


def test_a_training_run_depends_on_its_seed_alone(rng):
    """Even if a backbone drops units."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, strides=2)(inputs)
    x = keras.layers.Dropout(0.5)(x)
    encoder = moco_keras.build_encoder(keras.Model(inputs, x), 8, 4)
    trainer = _classifier_training.Trainer(encoder, 2, steps=3, **HOW)
    images, labels = rng.integers(0, 256, (8, 8, 8, 3), "uint8"), [0, 1] * 4
    test = tf.data.Dataset.from_tensors((images, labels))

    def trained(seed):
        weights = trainer.trained(seed)
        trainer.accuracy(weights, images, labels, test, seed, lambda: None)
        return trainer.model.get_weights()

    first, other, again = trained(1), trained(2), trained(1)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[-2], other[-2])


def test_the_new_layer_is_that_of_training_from_scratch(small_export):
    encoder = keras.saving.load_model(small_export / "1" / "encoder.keras")
    trainer = _classifier_training.Trainer(encoder, 2, steps=3, **HOW)
    trained, untrained = trainer.trained(4), trainer.untrained(4)
    for a, b in zip(trained[-2:], untrained[-2:], strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(trained[:-2], encoder.get_weights(), strict=False):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(trained[0], untrained[0])


def test_the_new_layer_may_learn_faster(small_export, rng):
    encoder = keras.saving.load_model(small_export / "1" / "encoder.keras")
    images, labels = rng.integers(0, 256, (8, 8, 8, 3), "uint8"), [0, 1] * 4
    test = tf.data.Dataset.from_tensors((images, labels))
    moved = []
    for multiplier in (1, 10):
        trainer = _classifier_training.Trainer(
            encoder, 2, steps=1, learning_rate=0.01, head_multiplier=multiplier
        )
        trainer.num_steps = lambda num_images: 1
        before = trainer.trained(0)
        trainer.accuracy(before, images, labels, test, 0, lambda: None)
        after = trainer.model.get_weights()
        moved.append([a - b for a, b in zip(after, before, strict=True)])
    (*slow, slow_kernel, _), (*fast, fast_kernel, _) = moved
    for a, b in zip(fast, slow, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(slow_kernel).max() > 1e-5
    np.testing.assert_allclose(fast_kernel, 10 * slow_kernel, rtol=1e-3)


@pytest.mark.slow
def test_a_training_run_that_diverges_has_no_accuracy(settings, monkeypatch):
    monkeypatch.setitem(few_labels._TRAINING["scratch"], "learning_rate", 1e30)
    with pytest.raises(FloatingPointError, match="The loss became"):
        measure(settings, draws=1)


def test_images_of_one_class_are_refused(settings, labeled_folder):
    shutil.rmtree(labeled_folder / "train" / "dark one")
    with pytest.raises(ValueError, match="two classes or more.*images of 1"):
        measure(settings)
