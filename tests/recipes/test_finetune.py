import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import programs
import pytest
import tensorflow as tf
from absl import flags

import moco_keras
from moco_keras.recipes import _finetune_results, _flags, finetune
from moco_keras.recipes.finetune import FinetuneSettings

CLASSES = ["dark one", "h\u00e9ll"]


@pytest.fixture
def settings(small_export, labeled_folder, tmp_path):
    return {
        "encoder": str(small_export),
        "data": str(labeled_folder),
        "out": str(tmp_path / "out"),
        "epochs": 3,
        "batch_size": 8,
        "strategy": "none",
    }


@pytest.fixture
def no_results(no_pictures, monkeypatch):
    """It neither exports nor draws, which takes most of the time."""
    monkeypatch.setattr(
        _finetune_results.moco_keras,
        "export_classifier",
        lambda *args, **kwargs: None,
    )


def train(settings, **changes):
    finetune.finetune(FinetuneSettings(**{**settings, **changes}))


def metrics_of(out):
    return json.loads((Path(out) / "metrics.json").read_text())


def probabilities(out, images):
    loaded = tf.saved_model.load(str(Path(out) / "classifier" / "1"))
    serve = loaded.signatures["serving_default"]
    return serve(images=tf.constant(images))["probabilities"].numpy()


def test_it_leaves_a_classifier_and_what_it_is_worth(
    settings, tmp_path, rng, capsys
):
    train(settings, epochs=30, learning_rate=0.5)
    out = tmp_path / "out"
    metrics = metrics_of(out)
    assert metrics["test_accuracy"] > 0.9  # dark and bright images
    assert metrics["validation_images"] == 2
    assert metrics["train_images"] == 22
    assert metrics["test_images"] == 12
    assert np.sum(metrics["confusion"]) == 12
    record = json.loads((out / "classifier/1/classifier.json").read_text())
    assert record["classes"] == CLASSES
    assert record["training"]["metrics"]["test_images"] == 12
    told = record["training"]["settings"]
    assert told["epochs"] == 30 and not {"out", "data_dir"} & told.keys()
    dark = rng.integers(0, 128, (5, 8, 8, 3), "uint8")
    assert (probabilities(out, dark).argmax(axis=1) == 0).all()
    for name in ("confusion.png", "mistakes.png", "history.csv"):
        assert (out / name).is_file()
    assert not list(out.glob("*.keras"))
    assert "Accuracy on 12 test images" in capsys.readouterr().out
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    train(settings, epochs=30, learning_rate=0.5)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_it_resumes_to_the_bit(settings, tmp_path, monkeypatch, images):
    """Even if a backbone drops units.

    Interrupted at its end, it neither trains on nor leaves a second version.
    """
    monkeypatch.setattr(finetune, "_PATIENCE", 0)
    monkeypatch.setattr(finetune, "_LEAST_PATIENCE", 1)
    settings["epochs"] = 20
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, strides=2)(inputs)
    x = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(x))
    encoder = moco_keras.build_encoder(keras.Model(inputs, x), 8, 4)
    encoder.save(tmp_path / "drops.keras")
    settings["encoder"] = str(tmp_path / "drops.keras")
    train(settings)
    on_epoch_end = _finetune_results.Keep.on_epoch_end

    def stop(self, epoch, logs=None):
        on_epoch_end(self, epoch, logs)
        if epoch == 0:
            raise KeyboardInterrupt

    def stop_at_the_end(*args):
        raise KeyboardInterrupt

    other = str(tmp_path / "other")
    with monkeypatch.context() as patch:
        patch.setattr(_finetune_results.Keep, "on_epoch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            train(settings, out=other)
    assert (tmp_path / "other" / "last.keras").exists()
    with monkeypatch.context() as patch:
        patch.setattr(_finetune_results._pictures, "draw", stop_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            train(settings, out=other)
    train(settings, out=other)
    assert metrics_of(other) == metrics_of(settings["out"])
    np.testing.assert_array_equal(
        probabilities(other, images), probabilities(settings["out"], images)
    )
    history = (Path(other) / "history.csv").read_text()
    assert history == (tmp_path / "out" / "history.csv").read_text()
    assert 1 + 1 < len(history.splitlines()) < 1 + 20
    assert [p.name for p in (tmp_path / "other/classifier").iterdir()] == ["1"]


@pytest.mark.slow
def test_it_ends_where_no_epoch_is_better(settings, tmp_path, monkeypatch):
    """And exports the best one, not the last."""
    accuracies = iter([0.2, 0.9, *[0.5] * 20])
    append = _finetune_results.Keep.on_epoch_end

    def with_given_accuracy(self, epoch, logs=None):
        self._history.epochs[-1]["val_accuracy"] = next(accuracies)
        append(self, epoch, logs)
        if epoch == 1:
            self.best = self.model.get_weights()

    keep = _finetune_results.Keep
    monkeypatch.setattr(keep, "on_epoch_end", with_given_accuracy)
    exported = []
    monkeypatch.setattr(
        _finetune_results.moco_keras,
        "export_classifier",
        lambda model, *args, **kwargs: exported.append(model),
    )
    train(settings, epochs=20)
    history = (tmp_path / "out" / "history.csv").read_text().splitlines()
    assert len(history) == 1 + 2 + 6  # a header, the best, a patience of six
    (model,) = exported
    assert int(model.optimizer.iterations) == 2 * 3


def test_a_protocol_trains_the_last_layer_for_all_its_epochs(
    settings, tmp_path, small_export
):
    train(settings, protocol="moco_linear", epochs=5)
    metrics = metrics_of(tmp_path / "out")
    assert "validation_accuracy" not in metrics
    assert metrics["train_images"] == 24
    before = keras.saving.load_model(small_export / "1" / "encoder.keras")
    after = keras.saving.load_model(
        tmp_path / "out" / "classifier" / "1" / "classifier.keras"
    )
    for layer in before.layers:
        for a, b in zip(
            layer.get_weights(),
            after.get_layer(layer.name).get_weights(),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
    assert np.abs(after.get_layer("logits").bias).max() > 0
    rows = (tmp_path / "out" / "history.csv").read_text().splitlines()
    assert len(rows) == 1 + 5


@pytest.mark.slow
@pytest.mark.usefixtures("no_results")
def test_listed_labels_alone_are_used(settings, tmp_path, labeled_folder):
    listed = [f"dark one/{i}.png" for i in range(4)]
    listed += [f"train/{CLASSES[1]}/{i}.png" for i in range(6)]
    file = tmp_path / "list.txt"
    file.write_text("\n".join(listed) + "\n", "utf-8")
    train(settings, labels=str(file))
    metrics = metrics_of(tmp_path / "out")
    assert metrics["train_images"] + metrics["validation_images"] == 10
    file.write_text("dark one/0.png\ndark one/77.png\n")
    with pytest.raises(ValueError, match="Received: 1 that are not.*77.png"):
        train(settings, labels=str(file), out=str(tmp_path / "x"))


@pytest.mark.slow
@pytest.mark.usefixtures("no_results")
def test_the_split_val_is_not_trained_on(settings, labeled_folder, tmp_path):
    (labeled_folder / "test").rename(labeled_folder / "val")
    train(settings)
    metrics = metrics_of(tmp_path / "out")
    assert metrics["validation_images"] == 12
    assert metrics["train_images"] == 24
    assert "test_images" not in metrics


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": None}, "--encoder must be given"),
        ({"data": None}, "--data must be given"),
        ({"out": None}, "--out must be given"),
        (
            {"labels": "x", "data": "cifar10"},
            "--labels lists files of a folder",
        ),
    ],
)
def test_bad_settings(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        train(settings, **changes)


def test_one_class_is_refused(settings, labeled_folder):
    with pytest.raises(ValueError, match="two classes or more.*of 0"):
        train(settings, data=str(labeled_folder / "train" / "dark one"))


@pytest.mark.slow
@pytest.mark.usefixtures("no_results")
def test_a_folder_of_another_command_is_refused(
    settings, tmp_path, labeled_folder
):
    train(settings, epochs=1)
    with pytest.raises(FileExistsError, match="--seed. Nothing was changed"):
        train(settings, epochs=1, seed=1)
    other = moco_keras.build_encoder("resnet6", 8, width=2)
    other.save(tmp_path / "other.keras")
    with pytest.raises(FileExistsError, match="differ: encoder. Nothing was"):
        train(settings, epochs=1, encoder=str(tmp_path / "other.keras"))
    # Also an image that it only tests with.
    (labeled_folder / "test" / "dark one" / "0.png").unlink()
    with pytest.raises(FileExistsError, match="differ: images. Nothing was"):
        train(settings, epochs=1)


def test_what_cannot_be_done_is_said_before_training(
    settings, tmp_path, monkeypatch
):
    with pytest.raises(FileNotFoundError, match="typo.keras, which is not th"):
        train(settings, encoder=str(tmp_path / "typo.keras"))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if "onnx" in name else find_spec(name),
    )
    with pytest.raises(ImportError, match="onnx"):
        train(settings, format="onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "data", "protocol"),
    [
        ("linear", "imagenet2012", "moco_linear"),
        ("linear_v3", "imagenet2012", "moco_v3_linear"),
        ("1_percent", "imagenet2012_subset/1pct", "swav_1_percent"),
    ],
)
def test_flag_files_for_imagenet(name, data, protocol):
    values = flags.FlagValues()
    flags.DEFINE_string("flagfile", None, "", values)
    _flags.define(FinetuneSettings(), values)
    file = programs.ROOT / f"recipes/imagenet_{name}.flags"
    values(["finetune", f"--flagfile={file}"])
    expected = FinetuneSettings(data=data, protocol=protocol)
    assert _flags.read(FinetuneSettings, values) == expected
