import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from moco_keras import data
from moco_keras.distribution import accelerators
from moco_keras.recipes import (
    _data,
    _defaults,
    _history,
    _record,
    _run_dir,
    _run_files,
)
from moco_keras.recipes._settings import Settings


@pytest.fixture
def open_folder(images):
    """Opens a run's folder; leaves an empty checkpoint unless `steps` is 0."""
    labels = np.zeros(len(images), "int64")
    noise = data.ImageSet(images, labels, ["noise"], "noise")

    def open_with(settings, recipe="recipe", source=noise, steps=32):
        images = _data.Images(source, noise, noise)
        record = _record.make(
            settings, recipe, images, tf.distribute.get_strategy()
        )
        with _run_dir.own(settings, recipe) as (folder, _):
            _run_dir.open_folder(folder, record)
            if steps:
                checkpoint = folder / f"checkpoints/{steps:09d}.index"
                checkpoint.parent.mkdir(exist_ok=True)
                checkpoint.touch()
        return folder

    return open_with


def test_every_run_gets_a_new_folder(open_folder, tmp_path):
    settings = Settings(output_dir=str(tmp_path))
    folders = {open_folder(settings) for _ in range(3)}
    assert len(folders) == 3
    for folder in folders:
        assert folder.parent == tmp_path / "recipe"
        record = json.loads((folder / "settings.json").read_text())
        assert record["settings"] == dataclasses.asdict(settings)


def test_an_unfinished_run_resumes_only_with_its_own_settings(
    open_folder, images, tmp_path
):
    folder = tmp_path / "new/run"
    settings = Settings(run_dir=str(folder), momentum=0.9, data_dir="here")
    assert open_folder(settings) == folder
    moved = dataclasses.replace(settings, data_dir="there", strategy="mirrored")
    assert open_folder(moved) == folder
    written = (folder / "settings.json").read_text()
    other = dataclasses.replace(moved, momentum=0.5, symmetric=True)
    with pytest.raises(ValueError, match="resumes with what it began") as error:
        open_folder(other)
    assert "--momentum=0.5 (it began with 0.9)" in str(error.value)
    assert "--symmetric=True (it began with False)" in str(error.value)
    assert "data_dir" not in str(error.value)
    with pytest.raises(ValueError, match=r"recipe=b \(it began with recipe"):
        open_folder(moved, recipe="b")
    few = data.ImageSet(images[:3], np.zeros(3, "int64"), ["noise"], "noise")
    with pytest.raises(ValueError, match=r"train_images=3 \(it began with 16"):
        open_folder(moved, source=few)
    grown = few._replace(source="folder 12345678")
    with pytest.raises(ValueError, match="Images were added, removed, renamed"):
        open_folder(moved, source=grown)
    assert (folder / "settings.json").read_text() == written


def test_a_run_resumes_in_its_own_precision(open_folder, tmp_path):
    """By default, and on any device."""
    strategy = tf.distribute.get_strategy()
    settings = Settings(run_dir=str(tmp_path))
    chosen = _defaults.for_device(settings, strategy)
    assert chosen.precision == accelerators.default_precision()
    began = dataclasses.replace(settings, precision="mixed_float16")
    open_folder(began)
    chosen = _defaults.for_device(settings, strategy)
    assert chosen == began
    open_folder(chosen)


@pytest.mark.parametrize(
    "file", ["metrics.json", "thesis.tex", "settings.json"]
)
def test_a_folder_with_other_files_is_refused(file, open_folder, tmp_path):
    (tmp_path / file).touch()
    with pytest.raises(FileExistsError, match="holds other files"):
        open_folder(Settings(run_dir=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_a_finished_run_is_continued_by_more_epochs(open_folder, tmp_path):
    settings = Settings(run_dir=str(tmp_path), epochs=2)
    open_folder(settings)
    (tmp_path / "metrics.json").touch()
    checkpoint = tmp_path / "checkpoints" / "000000032.index"
    checkpoint.unlink()
    written = (tmp_path / "settings.json").read_text()
    longer = dataclasses.replace(settings, epochs=3)
    with pytest.raises(FileNotFoundError, match="last checkpoint.*--init_from"):
        open_folder(longer)
    checkpoint.touch()
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
    # A mistake is forgotten if no step was trained with it.
    open_folder(dataclasses.replace(settings, epochs=4000), steps=0)
    assert _record.read(tmp_path)["settings"]["epochs"] == 2
    assert open_folder(longer, steps=64) == tmp_path
    assert (tmp_path / "settings.json").read_text() == written
    assert _record.read(tmp_path)["continued_after_epochs"] == [2]
    open_folder(longer)
    assert _record.read(tmp_path)["continued_after_epochs"] == [2]
    for epochs in (2, 4):
        with pytest.raises(ValueError, match=rf"epochs={epochs} .it began wi"):
            open_folder(dataclasses.replace(settings, epochs=epochs))


def test_the_error_names_a_damaged_record(open_folder, tmp_path):
    settings = Settings(run_dir=str(tmp_path))
    open_folder(settings)
    for content in ("", '{"settings": '):
        (tmp_path / "settings.json").write_text(content)
        with pytest.raises(FileExistsError, match="its settings.json"):
            open_folder(settings)
    (tmp_path / "history.csv").write_text("epoch,loss\n1,0.45x\n")
    with pytest.raises(ValueError, match=r"history.csv must hold.*0\.45x"):
        _history.History(tmp_path / "history.csv")


def test_a_history_resumes_with_its_run(tmp_path):
    path = tmp_path / "history.csv"
    epochs = [
        {"loss": 0.1 + 0.2, "knn": 0.5},
        {"loss": 1e-7, "val_loss": 2.0},
        {"loss": float("inf"), "knn": 1.0},
    ]
    whole = _history.History(path)
    for i, logs in enumerate(epochs):
        whole.on_epoch_begin(i)
        whole.on_epoch_end(i, logs)
    assert whole.epochs == [
        {"epoch": i + 1, **logs} for i, logs in enumerate(epochs)
    ]
    written = path.read_text()
    again = _history.History(path)
    assert again.epochs == whole.epochs
    for i, logs in enumerate(epochs[1:], 1):
        again.on_epoch_begin(i)
        again.on_epoch_end(i, logs)
    assert again.epochs == whole.epochs
    assert path.read_text() == written


FILES_BEFORE_A_CHECKPOINT = (
    "settings.json",
    "history.csv",
    "skipped.csv",
    "logs/train/events",
    "checkpoints/000000032.data-00000-of-00001",
)


def test_a_folder_without_a_checkpoint_is_free_for_any_run(
    open_folder, tmp_path
):
    """Even if a process was killed there."""
    run = tmp_path / "new" / "run"
    settings = Settings(run_dir=str(run), epochs=2)
    open_folder(settings, steps=0)
    assert not list(tmp_path.iterdir())
    open_folder(settings)
    record = (run / "settings.json").read_text()
    shutil.rmtree(run)
    for file in FILES_BEFORE_A_CHECKPOINT:
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).write_text(record)
    (run / "notes.txt").write_text("mine")
    other = dataclasses.replace(settings, seed=1, precision="mixed_float16")
    strategy = tf.distribute.get_strategy()
    chosen = _defaults.for_device(settings, strategy)
    assert chosen.precision == accelerators.default_precision()
    open_folder(other, recipe="another")
    assert _record.read(run)["recipe"] == "another"
    assert {p.name for p in run.iterdir()} == {
        "checkpoints",
        "notes.txt",
        "settings.json",
    }
    with pytest.raises(ValueError, match="seed=0 .it began with 1"):
        open_folder(settings, recipe="another")


@pytest.mark.parametrize("result", ["model.keras", "encoder/1/saved_model.pb"])
def test_results_without_a_checkpoint_are_not_overwritten(
    result, open_folder, tmp_path
):
    settings = Settings(run_dir=str(tmp_path))
    open_folder(settings)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / result).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / result).touch()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(FileExistsError, match="neither of them. Nothing was"):
        open_folder(settings, steps=0)
    with pytest.raises(ValueError, match="seed=1 .it began with 0"):
        open_folder(dataclasses.replace(settings, seed=1), steps=0)
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert after == {**after, **before}


def test_a_run_has_one_owner(open_folder, tmp_path):
    run = tmp_path / "run"
    settings = Settings(run_dir=str(run))
    with _run_dir.own(settings, "recipe") as (folder, _):
        (folder / ".partial").mkdir()
        with pytest.raises(
            BlockingIOError, match=rf"one process at a time.*{run}, which is"
        ):
            open_folder(settings)
        assert (folder / ".partial").is_dir()
        (folder / ".partial").rmdir()
    open_folder(settings)
    new = Settings(output_dir=str(tmp_path))  # even within one second
    with (
        _run_dir.own(new, "r") as (first, _),
        _run_dir.own(new, "r") as (second, _),
    ):
        assert first != second


def test_a_run_whose_record_has_earlier_names_resumes(open_folder, tmp_path):
    settings = Settings(run_dir=str(tmp_path), backbone="resnet34")
    open_folder(settings)
    file = tmp_path / "settings.json"
    record = json.loads(file.read_text())
    before = record["settings"]
    before["encoder"] = before.pop("backbone")
    before["export_dir"] = before.pop("output_dir")
    file.write_text(json.dumps(record))
    given = dataclasses.replace(settings, backbone=None)
    chosen = _defaults.for_device(given, tf.distribute.get_strategy())
    assert chosen.backbone == "resnet34"
    open_folder(settings)
    another = dataclasses.replace(settings, backbone="resnet18")
    with pytest.raises(ValueError, match=r"18 \(it began with resnet34"):
        open_folder(another)


def test_leftovers_of_a_killed_process_are_removed(open_folder, tmp_path):
    settings = Settings(run_dir=str(tmp_path))
    open_folder(settings)
    (tmp_path / ".partial" / "encoder").mkdir(parents=True)
    (tmp_path / ".metrics.json.partial").touch()
    (tmp_path / ".lock").write_text("process 1 on mars")
    (tmp_path / "mine.partial").touch()
    open_folder(settings)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"checkpoints", "settings.json", "mine.partial"}


@pytest.mark.parametrize("flag", ["run_dir", "output_dir"])
def test_a_file_in_place_of_a_folder_is_refused(flag, open_folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file", tmp_path / "file" / "within"):
        with pytest.raises(NotADirectoryError, match="/file is a file. Choose"):
            open_folder(Settings(**{flag: str(path)}))


@pytest.mark.parametrize("flag", ["run_dir", "output_dir"])
def test_a_full_or_read_only_disk(flag, open_folder, small_disk):
    disk, make_read_only = small_disk
    settings = Settings(**{flag: str(disk / "run")})
    folder = open_folder(settings)
    again = dataclasses.replace(settings, run_dir=str(folder))
    before = (folder / "settings.json").read_text()
    with pytest.raises(OSError, match="No space left"):
        (disk / "more").write_bytes(bytes(10_000_000))
    for full in (True, False):
        if not full:
            make_read_only()
        words = "No space left" if full else "Read-only file system"
        for asked in (settings, again):
            with pytest.raises(OSError, match=f"{words}.*make room, or choose"):
                open_folder(asked)
        assert (folder / "settings.json").read_text() == before


def test_class_names_may_hold_any_bytes(images, tmp_path):
    """They are names of folders; a run with them resumes."""
    names = ["price_$10_$20", os.fsdecode(b"caf\xe9"), "\n"]
    noise = data.ImageSet(images, np.arange(16) % 3, names, "noise")
    settings = Settings(run_dir=str(tmp_path))
    record = _record.make(
        settings,
        "recipe",
        _data.Images(noise, noise, noise),
        tf.distribute.get_strategy(),
    )
    for _ in range(2):
        with _run_dir.own(settings, "recipe") as (folder, _):
            _run_dir.open_folder(folder, record)
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "checkpoints" / "1.index").touch()
        assert _record.read(folder) == record


def test_the_list_of_skipped_files_is_current(tmp_path):
    path = tmp_path / "skipped.csv"
    _run_files.write_skipped(path, [("a.jpg", "not an image")])
    assert "a.jpg" in path.read_text()
    _run_files.write_skipped(path, [])
    assert not path.exists()
