"""Which images of a folder or of TFDS train, choose and test a classifier."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from moco_keras.distribution import accelerators
from moco_keras.recipes import _finetune_data, _labeled_data, _trained
from moco_keras.recipes.few_labels import FewLabelsSettings
from moco_keras.recipes.finetune import FinetuneSettings


def splits_of(folder, *required, **kwargs):
    splits, held_out = _labeled_data.of_folder(folder, required, **kwargs)
    return {k: v.num_examples for k, v in splits.items()}, held_out


def flatten(split):
    """Moves the images of a split out of the folders of their classes."""
    for i, file in enumerate(sorted(split.rglob("*.png"))):
        file.rename(split / f"{i}.png")
    for folder in split.iterdir():
        if folder.is_dir():
            folder.rmdir()


def test_a_tenth_of_each_class_is_held_out_where_nothing_tests(
    labeled_folder, capsys
):
    both = {"train": 24, "test": 12}
    assert splits_of(labeled_folder, "validation", "test") == (both, False)
    assert splits_of(labeled_folder) == (both, False)
    parts = {"train": 22, "validation": 2, "test": 12}
    assert splits_of(labeled_folder, "validation") == (parts, True)
    shutil.rmtree(labeled_folder / "test")
    given = FewLabelsSettings(data=str(labeled_folder / "train"))
    train, test = _trained.read(given)
    assert train.num_examples == 22
    assert sorted(test.labels) == [0, 1]
    assert "22 images, and 2 test: held out" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_split_without_labels_does_not_test(labeled_folder, name):
    (labeled_folder / "test").rename(labeled_folder / name)
    flatten(labeled_folder / name)
    splits = {"train": 22, "validation": 2}
    found = splits_of(labeled_folder, "validation", "test")
    assert found == (splits, True)


def test_one_image_for_each_class_cannot_be_held_out(labeled_folder):
    listed = ["train/dark one/0.png", "train/h\u00e9ll/0.png"]
    with pytest.raises(ValueError, match="two images or more.*Received: "):
        splits_of(labeled_folder, "validation", listed=listed)
    assert splits_of(labeled_folder, listed=listed)[0]["train"] == 2


def test_classes_that_cannot_be_learned_are_refused(labeled_folder):
    (labeled_folder / "test" / "dark one").rename(
        labeled_folder / "test" / "an owl"
    )
    with pytest.raises(
        ValueError, match="the split test that are of 1 other .* as an owl"
    ):
        splits_of(labeled_folder)


def test_a_listed_name_of_several_images_is_refused(labeled_folder):
    with pytest.raises(ValueError, match=r"Received: 3.png, which several"):
        splits_of(labeled_folder, listed=["3.png"])


def test_what_is_skipped_is_printed(labeled_folder, capsys):
    (labeled_folder / "train" / "dark one" / "a.webp").write_text("x")
    splits_of(labeled_folder)
    assert "a.webp" in capsys.readouterr().out


def test_rows_without_room_in_memory_are_refused(labeled_folder, monkeypatch):
    splits, _ = _labeled_data.of_folder(labeled_folder, ())
    need = 2 * 5 * 3 * 8**2
    monkeypatch.setattr(accelerators, "free_memory", lambda: need)
    _labeled_data.load_rows(splits["train"], np.arange(5), 8)
    monkeypatch.setattr(accelerators, "free_memory", lambda: need - 1)
    with pytest.raises(ValueError, match="must fit the memory.*5 of 8x8"):
        _labeled_data.load_rows(splits["train"], np.arange(5), 8)
    # The memory of a GPU does not hold them.
    monkeypatch.setattr(accelerators, "on_gpu", lambda: True)
    _labeled_data.load_rows(splits["train"], np.arange(5), 8)


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


def test_without_a_split_that_tests_the_end_of_train_is_held_out(prepared):
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
    )
    data_dir = prepared("alternating", features, train=[0, 1] * 10)
    splits, held_out = _labeled_data.of_name(
        "alternating", ("validation", "test"), data_dir=data_dir
    )
    assert held_out
    assert splits["train"].num_examples == 18
    np.testing.assert_array_equal(
        _labeled_data.labels_of(splits["validation"]), [0, 1]
    )
    data_dir = prepared("sorted", features, train=[0] * 18 + [1] * 2)
    with pytest.raises(ValueError, match="1 other classes, such as dog"):
        _labeled_data.of_name("sorted", ("test",), data_dir=data_dir)


def test_a_data_set_without_classes_is_refused(prepared):
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(32, 32, 3))}
    )
    data_dir = prepared("plain", features, train=[0, 1])
    with pytest.raises(ValueError, match="a feature `label` of classes"):
        _labeled_data.of_name("plain", (), data_dir=data_dir)
