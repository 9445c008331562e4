import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from moco_keras import accelerators, data
from moco_keras.recipes import _pretrain, _record
from moco_keras.recipes._settings import Settings


@pytest.fixture
def open_folder(images):
    """Opens the folder of a run on images of noise."""
    labels = np.zeros(len(images), "int64")
    noise = data.ImageSet(images, labels, ["noise"], "noise")

    def open_with(settings, recipe="recipe", source=noise):
        images = _pretrain.Images(source, noise, noise)
        record = _record.make(
            settings, recipe, images, tf.distribute.get_strategy()
        )
        return _record.open_folder(record)

    return open_with


def test_every_run_has_a_new_folder(open_folder, tmp_path):
    settings = Settings(export_dir=str(tmp_path))
    folders = {open_folder(settings) for _ in range(3)}
    assert len(folders) == 3
    for folder in folders:
        assert folder.parent == tmp_path / "recipe"
        record = json.loads((folder / "settings.json").read_text())
        assert record["settings"] == dataclasses.asdict(settings)


def test_an_unfinished_run_goes_on_with_its_own_settings(
    open_folder, images, tmp_path
):
    folder = tmp_path / "new/run"
    settings = Settings(run_dir=str(folder), momentum=0.9, data_dir="here")
    assert open_folder(settings) == folder
    moved = dataclasses.replace(settings, data_dir="there", strategy="mirrored")
    assert open_folder(moved) == folder
    written = (folder / "settings.json").read_text()
    other = dataclasses.replace(moved, momentum=0.5, symmetric=True)
    with pytest.raises(ValueError, match="goes on with what it began") as error:
        open_folder(other)
    assert "--momentum=0.5 (it began with 0.9)" in str(error.value)
    assert "--symmetric=True (it began with False)" in str(error.value)
    assert "data_dir" not in str(error.value)
    with pytest.raises(ValueError, match=r"recipe=b \(it began with recipe"):
        open_folder(moved, recipe="b")
    few = data.ImageSet(images[:3], np.zeros(3, "int64"), ["noise"], "noise")
    with pytest.raises(ValueError, match=r"train_images=3 \(it began with 16"):
        open_folder(moved, source=few)
    assert (folder / "settings.json").read_text() == written


def test_a_run_resumes_in_its_own_precision(open_folder, tmp_path):
    """On whatever it resumes, where nobody asks for another."""
    strategy = tf.distribute.get_strategy()
    settings = Settings(run_dir=str(tmp_path))
    chosen = _pretrain._with_precision(settings, strategy)
    assert chosen.precision == accelerators.default_precision()
    began = dataclasses.replace(settings, precision="mixed_float16")
    open_folder(began)
    chosen = _pretrain._with_precision(settings, strategy)
    assert chosen == began
    open_folder(chosen)


@pytest.mark.parametrize(
    "file", ["metrics.json", "thesis.tex", "settings.json"]
)
def test_another_folder_is_refused(file, open_folder, tmp_path):
    (tmp_path / file).touch()
    with pytest.raises(FileExistsError, match="holds other files"):
        open_folder(Settings(run_dir=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_a_finished_run_is_continued_by_more_epochs(open_folder, tmp_path):
    settings = Settings(run_dir=str(tmp_path), epochs=2)
    open_folder(settings)
    (tmp_path / "metrics.json").touch()
    (tmp_path / "checkpoints").mkdir()
    written = (tmp_path / "settings.json").read_text()
    longer = dataclasses.replace(settings, epochs=3)
    with pytest.raises(FileNotFoundError, match="last checkpoint.*--init_from"):
        open_folder(longer)
    (tmp_path / "checkpoints" / "000000032.index").touch()
    for epochs in (1, 2):
        again = dataclasses.replace(settings, epochs=epochs)
        with pytest.raises(
            FileExistsError,
            match=rf"epochs={epochs} and.*, with 2 epochs.*--init_from=",
        ):
            open_folder(again)
    with pytest.raises(ValueError, match="seed=1 .it began with 0") as error:
        open_folder(dataclasses.replace(longer, seed=1))
    assert "--epochs" not in str(error.value)
    assert open_folder(longer) == tmp_path
    assert (tmp_path / "settings.json").read_text() == written
    assert _record.begun(tmp_path)["continued_after_epochs"] == [2]
    open_folder(longer)
    assert _record.begun(tmp_path)["continued_after_epochs"] == [2]
    for epochs in (2, 4):
        with pytest.raises(ValueError, match=rf"epochs={epochs} .it began wi"):
            open_folder(dataclasses.replace(settings, epochs=epochs))


def test_history_goes_on_where_the_training_does(tmp_path):
    path = tmp_path / "history.csv"
    epochs = [
        {"loss": 0.1 + 0.2, "knn": 0.5},
        {"loss": 1e-7},
        {"loss": float("inf"), "knn": 1.0},
    ]
    whole = _record.History(path)
    for i, logs in enumerate(epochs):
        whole.on_epoch_begin(i)
        whole.on_epoch_end(i, logs)
    assert whole.epochs == [
        {"epoch": i + 1, **logs} for i, logs in enumerate(epochs)
    ]
    written = path.read_text()
    again = _record.History(path)
    assert again.epochs == whole.epochs
    for i, logs in enumerate(epochs[1:], 1):
        again.on_epoch_begin(i)
        again.on_epoch_end(i, logs)
    assert again.epochs == whole.epochs
    assert path.read_text() == written
