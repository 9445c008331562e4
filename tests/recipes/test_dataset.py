"""The program for data sets of TFDS, of any channels, types and splits."""

import dataclasses
import json
import os

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from programs import TINY

import moco_keras
from moco_keras import data
from moco_keras.recipes import (
    _defaults,
    _evaluation,
    _history,
    _pixels,
    dataset,
    few_labels,
)

FEW = {**TINY, "knn_every": 2}
STRATEGY = tf.distribute.get_strategy()


class BandsStandIn(tfds.core.GeneratorBasedBuilder):
    """As eurosat/all: 13 bands, float32, under another name, and no tests."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "filename": tfds.features.Text(),
            "label": tfds.features.ClassLabel(num_classes=2),
            "sentinel2": tfds.features.Tensor(
                shape=(12, 12, 13), dtype=np.float32
            ),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        rng = np.random.default_rng(0)
        for i in range(40):
            image = rng.uniform(0, 4000, (12, 12, 13)).astype("float32")
            image[..., 5] += 2000 * (i % 2)
            yield (
                i,
                {"filename": f"{i}.tif", "label": i % 2, "sentinel2": image},
            )


class UnlabeledStandIn(tfds.core.GeneratorBasedBuilder):
    """As stl10: few images with labels, others without, all of one size."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(12, 12, 3)),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        counts = {"train": 20, "test": 12, "unlabelled": 30}
        return {
            name: self._generate_examples(name, n) for name, n in counts.items()
        }

    def _generate_examples(self, split, count):
        rng = np.random.default_rng(count)
        for i in range(count):
            label = -1 if split == "unlabelled" else i % 2
            image = rng.integers(0, 256, (12, 12, 3), "uint8")
            yield i, {"image": image, "label": label}


class GrayStandIn(tfds.core.GeneratorBasedBuilder):
    """16 bits, one channel, sizes that differ, no labels."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 1), dtype=np.uint16)
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        rng = np.random.default_rng(0)
        for i in range(24):
            shape = (14 + i % 3, 16, 1)
            yield i, {"image": rng.integers(0, 4096, shape, "uint16")}


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """Leaves those of this process as they are."""
    monkeypatch.setattr(dataset._threads, "share_cores", lambda: None)


def run(name, folder, **settings):
    settings = dataclasses.replace(
        dataset.DEFAULTS,
        name=name,
        data_dir=str(folder / "data"),
        run_dir=str(folder / "run"),
        **{**FEW, **settings},
    )
    dataset.dataset(settings)
    record = json.loads((folder / "run/settings.json").read_text())
    metrics = json.loads((folder / "run/metrics.json").read_text())
    return record, metrics


@pytest.mark.slow
def test_bands_of_a_satellite(tmp_path, shallow_networks, capsys):
    record, metrics = run("bands_stand_in", tmp_path, value_range="0,10000")
    told = record["settings"]
    assert record["data"]["image_shape"] == [12, 12, 13]
    assert told["channels"] == 13
    assert told["augmentation"] == "multichannel"
    assert {"knn_trained", "knn_raw_pixels", "verdict"} <= metrics.keys()
    builder = data.find_builder("bands_stand_in", str(tmp_path / "data"))
    images = np.stack(
        [x["sentinel2"] for x in tfds.as_numpy(builder.as_dataset("train"))]
    )
    mean, std = _pixels.parse_normalization(told["normalize"])
    parts = images.astype("float64") / 10_000
    np.testing.assert_allclose(mean, parts.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(std, parts.std((0, 1, 2)), rtol=1e-4)
    encoder = moco_keras.load_encoder(tmp_path / "run")
    assert encoder(images[:2]).shape == (2, 4)
    for name in ("views.png", "neighbours.png", "report.html", "map.json"):
        assert (tmp_path / "run" / name).stat().st_size
    assert "in all the images" not in capsys.readouterr().out


@pytest.mark.slow
def test_bands_without_a_range_are_an_error(tmp_path, shallow_networks):
    with pytest.raises(ValueError, match="--value_range must be.*float32"):
        run("bands_stand_in", tmp_path)


def test_unlabeled_images_are_tested_with_others(tmp_path):
    settings = dataclasses.replace(
        dataset.DEFAULTS,
        name="unlabeled_stand_in",
        data_dir=str(tmp_path / "data"),
        split="unlabelled",
        image_size=8,
    )
    images = dataset.read(settings)
    assert images.train.num_examples == 30
    assert images.test.images.shape == (12, 8, 8, 3)
    assert len(images.bank.images) == 20
    assert _evaluation.why_no_knn(images) is None
    assert images.notes == [
        "Tests: images of the split test; compared with images of train"
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("shallow_networks", "no_pictures")
def test_gray_images_of_sixteen_bits_and_any_size(tmp_path):
    with pytest.warns(UserWarning, match="a small part of the range of uint16"):
        record, _ = run("gray_stand_in", tmp_path, image_size=10, turns=True)
    told = record["settings"]
    assert record["data"]["image_shape"] == [10, 10, 1]
    assert (told["channels"], told["value_range"]) == (1, "0,65535")
    assert told["augmentation"] == "gray"
    mean, _ = _pixels.parse_normalization(told["normalize"])
    assert mean[0] == pytest.approx(2047.5 / 65535, rel=0.05)
    signatures = tf.saved_model.load(str(tmp_path / "run/encoder/1")).signatures
    serve = signatures["serving_default"]
    (spec,) = serve.structured_input_signature[1].values()
    assert spec.dtype == "uint16"


@pytest.mark.slow
@pytest.mark.skipif(
    "MOCO_KERAS_DATA_DIR" not in os.environ,
    reason="Fashion-MNIST is read from MOCO_KERAS_DATA_DIR",
)
def test_fashion_mnist(tmp_path, shallow_networks, monkeypatch):
    """Real images; in gray as they are, in RGB if asked, resumed as before."""
    settings = dataclasses.replace(
        dataset.DEFAULTS,
        name="fashion_mnist",
        run_dir=str(tmp_path),
        train_examples=64,
        test_examples=32,
        **{**FEW, "epochs": 1},
    )

    def stop(self, epoch, logs=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_history.History, "on_epoch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            dataset.dataset(settings)
    dataset.dataset(settings)
    record = json.loads((tmp_path / "settings.json").read_text())
    assert record["data"]["image_shape"] == [28, 28, 1]
    assert record["settings"]["augmentation"] == "gray"
    encoder = moco_keras.load_encoder(tmp_path, encoded=True)
    files = [tf.io.encode_png(np.full((40, 30, 1), 90, "uint8")).numpy()]
    assert encoder(tf.constant(files)).shape == (1, 4)
    few_labels.few_labels(
        few_labels.FewLabelsSettings(
            run_dir=str(tmp_path), labels_per_class="1", draws=1, steps=2
        )
    )
    table = json.loads((tmp_path / "few_labels.json").read_text())
    assert {row["method"] for row in table} == {
        "scratch",
        "probe",
        "finetuned",
    }
    images = dataset.read(
        dataclasses.replace(settings, channels=3, image_size=28)
    )
    assert images.test.images.shape == (32, 28, 28, 3)
    assert (np.ptp(images.test.images, axis=-1) == 0).all()


def test_12_bits_in_16_are_warned_of():
    images = np.zeros((8, 8, 8, 1), "uint16")
    images[0] = 4095
    some = data.ImageSet(images, np.zeros(8), [], "x-rays")
    some = dataset._data.Images(some, some, some)
    words = "from 0 to 4,095, a small part of the range of uint16.*value_range"
    with pytest.warns(UserWarning, match=words):
        completed(dataset.DEFAULTS, some)
    completed(dataclasses.replace(dataset.DEFAULTS, value_range="0,4095"), some)
    images[0] = 65535
    completed(dataset.DEFAULTS, some)


def completed(settings, images):
    return _defaults.for_pixels(settings, images, STRATEGY)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"name": None}, "--name must be given"),
        ({"value_range": "255,0"}, "--value_range must be two numbers in ord"),
        ({"value_range": "0"}, "--value_range must be two numbers in order"),
        ({"normalize": "0.1,0.2/0.3"}, "--normalize must be auto, or the chan"),
        ({"normalize": "half"}, "--normalize must be auto, or the channels"),
        ({"channels": 0}, "--channels must be a positive integer"),
    ],
)
def test_flags_are_checked_first(flags, words):
    with pytest.raises(ValueError, match=words):
        dataset.dataset(dataclasses.replace(dataset.DEFAULTS, **flags))


def test_settings_that_do_not_fit_the_images():
    images = np.zeros((2, 8, 8, 1), "uint8")
    some = data.ImageSet(images, np.zeros(2, "int64"), [], "some")
    some = dataset._data.Images(some, some, some)
    for flags, words in (
        ({"channels": 3}, "--channels must be those.*images of 1"),
        ({"augmentation": "moco_v2"}, "--augmentation must be gray or mult"),
    ):
        settings = dataclasses.replace(dataset.DEFAULTS, **flags)
        with pytest.raises(ValueError, match=words):
            completed(settings, some)
    rgb = some.train._replace(images=np.repeat(images, 3, axis=-1))
    settings = dataclasses.replace(dataset.DEFAULTS, turns=True)
    with pytest.raises(ValueError, match="--turns needs --augmentation=gray"):
        completed(settings, some._replace(bank=rgb))


def test_plain_images_are_normalized_as_before(rng):
    images = rng.integers(0, 256, (9, 8, 8, 3), "uint8")
    some = data.ImageSet(images, np.zeros(9, "int64"), [], "some")
    some = dataset._data.Images(some, some, some)
    settings = completed(dataset.DEFAULTS, some)
    assert settings.augmentation == "moco_v2"
    assert (settings.channels, settings.value_range) == (3, None)
    assert settings.normalize is None
    auto = dataclasses.replace(dataset.DEFAULTS, normalize="auto")
    mean, std = _pixels.parse_normalization(completed(auto, some).normalize)
    np.testing.assert_allclose(mean, images.mean((0, 1, 2)) / 255, rtol=1e-5)
    np.testing.assert_allclose(std, images.std((0, 1, 2)) / 255, rtol=1e-5)
    given = dataclasses.replace(auto, normalize="0.1,0.2,0.3/1,1,1")
    assert completed(given, some).normalize == given.normalize


def test_a_channel_that_is_the_same_everywhere_stays_small(rng):
    """Such as that of opaque images' alpha."""
    images = rng.integers(0, 256, (9, 8, 8, 4), "uint8")
    images[..., 3] = 255
    some = data.ImageSet(images, np.zeros(9, "int64"), [], "some")
    some = dataset._data.Images(some, some, some)
    told = completed(dataset.DEFAULTS, some).normalize
    mean, std = _pixels.parse_normalization(told)
    assert (mean[3], std[3]) == (1, 1)
    assert (np.array(std[:3]) > 0.2).all()


def test_a_pixel_that_is_no_number_is_refused(rng):
    images = rng.uniform(0, 1, (9, 8, 8, 2)).astype("float32")
    images[4, 3, 2, 1] = np.nan
    some = data.ImageSet(images, np.zeros(9, "int64"), [], "some")
    some = dataset._data.Images(some, some, some)
    settings = dataclasses.replace(dataset.DEFAULTS, value_range="0,1")
    with pytest.raises(ValueError, match="NaN or infinity in some"):
        completed(settings, some)
