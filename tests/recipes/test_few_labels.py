import functools
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from sklearn.linear_model import LogisticRegression

import moco_keras
from moco_keras import data
from moco_keras.evaluation import features, linear_probe
from moco_keras.recipes import (
    _classifier_training,
    _feature_files,
    _finetune_data,
    _label_draws,
    _labeled_data,
    _trained,
    few_labels,
)
from moco_keras.recipes.few_labels import FewLabelsSettings
from moco_keras.recipes.finetune import FinetuneSettings


@pytest.fixture
def settings(small_export, labeled_folder, tmp_path):
    return {
        "encoder": str(small_export),
        "data": str(labeled_folder),
        "out": str(tmp_path / "out"),
        "labels_per_class": "2,50%",
        "draws": 2,
        "steps": 3,
    }


def measure(settings, **changes):
    few_labels.few_labels(FewLabelsSettings(**{**settings, **changes}))


def test_the_table_has_mean_and_error_of_each_method(
    settings, tmp_path, capsys
):
    measure(settings)
    rows = json.loads((tmp_path / "out" / "few_labels.json").read_text())
    assert [(row["labels_per_class"], row["method"]) for row in rows] == [
        (amount, method)
        for amount in (2, "50%")
        for method in ("scratch", "probe", "finetuned")
    ]
    for row in rows:
        assert 0 <= row["mean"] <= 1 and row["draws"] == 2
        assert row["standard_error"] >= 0
    printed = capsys.readouterr().out
    assert "from scratch   frozen + probe       fine-tuned" in printed
    assert (tmp_path / "out" / "few_labels.png").stat().st_size > 10_000


def test_the_probe_sees_labels_of_the_draw_and_features_alone(
    settings, small_export, labeled_folder, tmp_path
):
    measure(settings)
    rows = json.loads((tmp_path / "out" / "few_labels.json").read_text())
    splits = data.read_splits(labeled_folder)
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
def test_it_resumes_with_the_same_result(settings, tmp_path, monkeypatch):
    measure(settings)
    whole = (tmp_path / "out" / "few_labels.json").read_text()
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
    keras.utils.set_random_seed(6)
    assert not (tmp_path / "other" / "few_labels.json").exists()
    measure(settings, out=other)
    assert len(calls) == 4 + 5  # eight trainings, three of them done before
    assert (tmp_path / "other" / "few_labels.json").read_text() == whole
    assert not list((tmp_path / "other").glob("*.partial*"))


@pytest.mark.slow
def test_what_is_measured_is_not_measured_again(
    settings, tmp_path, monkeypatch
):
    measure(settings, draws=1)
    trained, train = [], _classifier_training.Trainer.accuracy
    monkeypatch.setattr(
        _classifier_training.Trainer,
        "accuracy",
        lambda *args: trained.append(None) or train(*args),
    )
    monkeypatch.setattr(_feature_files, "_write", None)  # not called
    path = tmp_path / "out" / "few_labels.json"
    before = path.read_text()
    measure(settings, draws=1)
    assert trained == [] and path.read_text() == before
    measure(settings, draws=1, steps=1)
    assert len(trained) == 4
    measure(settings, draws=1)  # what other settings gave has not replaced it
    assert len(trained) == 4 and path.read_text() == before
    measure(settings, draws=2, labels_per_class="2")
    assert len(trained) == 4 + 2


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
    trainer = _classifier_training.Trainer(encoder, 2, steps=3)
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
    trainer = _classifier_training.Trainer(encoder, 2, steps=3)
    trained, untrained = trainer.trained(4), trainer.untrained(4)
    for a, b in zip(trained[-2:], untrained[-2:], strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(trained[:-2], encoder.get_weights(), strict=False):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(trained[0], untrained[0])


def test_a_training_run_that_diverges_has_no_accuracy(settings, monkeypatch):
    monkeypatch.setattr(
        few_labels._classifier_training,
        "Trainer",
        functools.partial(_classifier_training.Trainer, learning_rate=1e30),
    )
    with pytest.raises(FloatingPointError, match="The loss became"):
        measure(settings, draws=1)


def test_images_of_one_class_are_refused(settings, labeled_folder):
    shutil.rmtree(labeled_folder / "train" / "dark one")
    with pytest.raises(ValueError, match="two classes or more.*images of 1"):
        measure(settings)


def test_a_tenth_is_held_out_where_nothing_tests(labeled_folder):
    shutil.rmtree(labeled_folder / "test")
    given = FewLabelsSettings(data=str(labeled_folder / "train"))
    train, test = _trained.read(given)
    assert (train.num_examples, test.num_examples) == (22, 2)
    assert sorted(test.labels) == [0, 1]


@pytest.fixture
def prepared(tmp_path):
    """Prepares data sets of TFDS in a folder, from the labels of each split."""

    def prepare(name, features, version="1.0.0", config=None, **splits):
        def examples(labels):
            for i, label in enumerate(labels):
                image = np.full((32, 32, 3), i % 256, "uint8")
                more = {"file_name": f"{i}.JPEG"}
                example = {"image": image, "label": label, **more}
                yield i, {k: v for k, v in example.items() if k in features}

        tfds.dataset_builders.store_as_tfds_dataset(
            name,
            version,
            features,
            {name: list(examples(labels)) for name, labels in splits.items()},
            config=config,
            data_dir=tmp_path / "tfds",
            disable_shuffling=True,
        )
        return str(tmp_path / "tfds")

    return prepare


@pytest.fixture
def owls(prepared):
    """A data set without test images that have labels."""
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(names=["cat", "dog", "owl"]),
        }
    )
    data_dir = prepared(
        "owls", features, train=[0, 1, 2] * 4, validation=[1, 2], test=[-1, -1]
    )
    return FewLabelsSettings(data="owls", data_dir=data_dir)


def test_a_split_whose_labels_are_not_published_does_not_test(owls):
    """As that of ImageNet, whose labels are -1."""
    train, test = _trained.read(owls)
    np.testing.assert_array_equal(train.labels, [0, 1, 2] * 4)
    np.testing.assert_array_equal(test.labels, [1, 2])
    assert train.class_names == ["cat", "dog", "owl"]


def test_drawn_images_alone_are_decoded(owls):
    train, _ = _trained.read(owls)
    order = _labeled_data.load_rows(train, np.arange(12), 32)[:, 0, 0, 0]
    np.testing.assert_array_equal(order, np.arange(12))
    decoded = []

    def decode(example):
        tf.py_function(lambda: decoded.append(None), [], [])
        return train.decode(example)

    rows = np.array([1, 7, 11])
    some = _labeled_data.load_rows(train._replace(decode=decode), rows, 8)
    assert some.shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(some[:, 0, 0, 0], rows)
    assert len(decoded) == 3


def test_the_published_part_of_imagenet_by_its_name(prepared, tmp_path):
    name, config = "imagenet2012_subset", "1pct"
    builder = tfds.builder(f"{name}/{config}", data_dir=tmp_path / "tfds")
    labels = np.arange(1000)
    data_dir = prepared(
        name,
        builder.info.features,
        str(builder.version),
        builder.builder_config,
        train=labels,
        validation=labels[::-1],
    )
    train, test = _trained.read(
        FewLabelsSettings(data=f"{name}/{config}", data_dir=data_dir)
    )
    np.testing.assert_array_equal(train.labels, labels)
    np.testing.assert_array_equal(test.labels, labels[::-1])
    assert train.source == f"{name}/{config}/{builder.version}"
    assert train.class_names[7] == builder.info.features["label"].names[7]
    splits = _finetune_data.read(
        FinetuneSettings(data=f"{name}/{config}", data_dir=data_dir), False
    )
    assert splits.train.num_examples == splits.test.num_examples == 1000
