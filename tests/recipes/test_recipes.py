import dataclasses
import json
import os
import re
import signal
import time

import numpy as np
import programs
import pytest
import tensorflow as tf
from absl import flags
from PIL import Image
from programs import ROOT, RUN_FILES, run

import moco_keras
from moco_keras import data
from moco_keras.data import builders, textures
from moco_keras.distribution import accelerators
from moco_keras.recipes import (
    _data,
    _evaluation,
    _flags,
    _model,
    _pretrain,
    _settings,
    _threads,
    cifar10,
    dataset,
    export,
    image_folder,
)

pytestmark = pytest.mark.xdist_group("smoke")  # which share its run


def only_run(folder):
    (found,) = folder.iterdir()
    return found


@pytest.fixture(scope="module")
def run_smoke(textures_dir, tmp_path_factory):
    """Runs the smoke recipe; returns its process and its folder."""

    def run_with(seed):
        output_dir = tmp_path_factory.mktemp("smoke")
        flags = f"--output_dir={output_dir}", f"--seed={seed}"
        command = programs.smoke(textures_dir, *flags)
        result = programs.finish(programs.start_shallow(*command))
        assert result.returncode == 0, result.stderr
        return result, only_run(output_dir / "textures")

    return run_with


@pytest.fixture(scope="module")
def smoke(run_smoke):
    return run_smoke(seed=7)


@pytest.mark.slow
def test_a_run_writes_all_its_files(smoke):
    result, folder = smoke
    if not accelerators.on_gpu():
        assert result.stderr == ""
    assert {path.name for path in folder.iterdir()} == RUN_FILES
    assert (folder / "encoder" / "1" / "saved_model.pb").is_file()
    assert list(folder.glob("logs/train/events*"))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [e["epoch"] for e in metrics["history"]] == [1, 2]
    assert metrics["knn_trained"] == metrics["history"][-1]["knn"]
    timing = json.loads((folder / "timing.json").read_text())
    assert timing["images_per_second"] > 0
    for name in ("raw_pixels", "untrained", "trained"):
        value = metrics[f"knn_{name}"]
        assert 0 < value < 1
        label = name.replace("_", " ")
        assert re.search(rf"{label} +{value:.3f}", result.stdout)
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["settings"]["seed"] == 7
    assert settings["settings"]["width"] == 4
    # What "auto" selects on this machine.
    assert settings["settings"]["precision"] == accelerators.default_precision()
    device = f"{settings['device']}; {settings['settings']['precision']}"
    assert f"\nTraining on: {device}\n" in f"\n{result.stdout}"
    assert settings["versions"]["moco_keras"] == moco_keras.__version__
    assert settings["data"]["source"] == "textures/1.0.0"
    assert settings["data"]["train_images"] == 512


@pytest.mark.slow
def test_the_model_of_a_run_loads(smoke):
    import keras

    model = keras.saving.load_model(smoke[1] / "model.keras")
    images, _ = textures.draw(4, seed=9)
    assert model.predict(images, verbose=0).shape == (4, 128)
    # 2 epochs of 8 steps of 64, K = 192
    assert int(model.queue.pointer) == 2 * 8 * 64 % 192


@pytest.mark.slow
def test_a_run_is_exported_again(smoke, tmp_path):
    _, folder = smoke
    settings = export.ExportSettings(
        model=str(folder), path=str(tmp_path), output="projection"
    )
    export.export(settings)
    ours, first = (
        json.loads((place / "1" / "encoder.json").read_text())
        for place in (tmp_path, folder / "encoder")
    )
    assert ours["training"] == first["training"]
    assert (first["output"], ours["output"]) == ("features", "projection")
    assert ours["embedding_size"] == 128
    file = str(folder / "model.keras")
    export.export(export.ExportSettings(model=file, path=str(tmp_path)))
    assert (tmp_path / "2" / "saved_model.pb").is_file()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "--model must be given"),
        ("gone", "--model must be the folder of a finished run.*model=gone"),
        (".", "there is no file model.keras"),
        (__file__, "--path must be given for a --model that is a file"),
    ],
)
def test_there_is_nothing_to_export(model, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        export.export(export.ExportSettings(model=model))


def test_a_run_without_its_metrics_is_exported(make_model, tmp_path, capsys):
    """The user is told, and results that were not yet moved are moved."""
    run = tmp_path / "run"
    ready = run / ".ready"
    ready.mkdir(parents=True)
    make_model().save(ready / "model.keras")
    settings = {"width": 8, "data_dir": "/home/me", "run_dir": str(run)}
    record = {"recipe": "mine", "settings": settings}
    (run / "settings.json").write_text(json.dumps(record))
    export.export(export.ExportSettings(model=str(run)))
    stderr = capsys.readouterr().err
    assert "says less of its training: metrics.json of" in stderr
    assert "settings.json" not in stderr
    version = run / "encoder" / "1"
    record = json.loads((version / "encoder.json").read_text())
    assert record["training"] == {
        "recipe": "mine",
        "settings": {"width": 8},  # not where it kept its files
        "metrics": {},
    }
    assert (version / "saved_model.pb").is_file()
    assert not ready.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("shallow_networks")
def test_a_stopped_run_on_a_folder_of_images_resumes(tmp_path):
    folder = tmp_path / "images"
    (folder / "within").mkdir(parents=True)
    images, _ = textures.draw(60, seed=0)
    for i, image in enumerate(images):
        size = (20 + i, 40 - i // 2)
        Image.fromarray(image).resize(size).save(folder / f"within/{i}.jpg")
    Image.fromarray(images[0]).save(folder / "no class.png")
    (folder / "notes.jpg").write_text("a list of things to buy")
    run_dir = tmp_path / "run"
    command = (
        "image_folder",
        f"--flagfile={ROOT}/recipes/smoke.flags",
        f"--images={folder}",
        f"--run_dir={run_dir}",
        "--checkpoint_every=1 step",
        "--backbone=resnet18",
        "--image_size=16",
        "--train_examples=61",
        "--test_examples=9",
        "--batch_size=8",
        "--bn_splits=1",
        "--epochs=4",
    )
    process = programs.start_shallow(*command)
    while len(list(run_dir.glob("checkpoints/*.index"))) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    stopped = programs.finish(process)
    assert stopped.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in stopped.stderr
    assert "Stopped by SIGTERM, and saved" in stopped.stderr
    assert f"--run_dir={run_dir}" in stopped.stderr
    assert (
        "1 Neither JPEG, PNG, GIF, BMP, WebP, TIFF nor .npy: notes.jpg"
        in stopped.stdout
    )

    programs.here(command, image_folder.DEFAULTS, image_folder.read)
    left = {path.name for path in run_dir.iterdir()}
    assert left == RUN_FILES | {"skipped.csv"}
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics.keys() == {
        "chance",
        "health",
        "history",
        "verdict",
    }  # not all have a class
    assert [epoch["epoch"] for epoch in metrics["history"]] == [1, 2, 3, 4]
    assert "notes.jpg" in (run_dir / "skipped.csv").read_text()


@pytest.mark.slow
def test_a_run_in_use_is_refused(textures_dir, tmp_path):
    """A second one ends at once, and the first is not disturbed.

    Nor is it by whoever reads its output leaving, such as `head`.
    """
    folder = tmp_path / "run"
    command = programs.smoke(textures_dir, f"--run_dir={folder}")
    first = programs.start_shallow(*command)
    while not (folder / ".lock").exists():
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.05)
    words = f"which is held by process {first.pid} on"
    with pytest.raises(BlockingIOError, match=words):
        # It would fail otherwise as soon as it reads any data.
        _pretrain.pretrain(
            _settings.Settings(run_dir=str(folder)), "textures", None
        )
    assert first.poll() is None
    first.stdout.close()
    first.stderr.close()
    assert first.wait(timeout=300) == 0
    assert {path.name for path in folder.iterdir()} == RUN_FILES
    assert [path.name for path in (folder / "encoder").iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0] * 3 + [1] * 2, "k=2, the smallest class's images"),
        ([0] * 300 + [1] * 200, "k=200"),
    ],
)
def test_the_number_of_voting_neighbors_is_described(labels, words):
    bank = data.ImageSet(None, np.array(labels), [], "")
    assert _evaluation.describe_k(bank) == words


@pytest.mark.parametrize(
    ("part", "what"), [("bank", "compare"), ("test", "test")]
)
def test_a_run_needs_images_to_evaluate_with(part, what, images, tmp_path):
    noise = data.ImageSet(images, np.zeros(16, "int64"), ["noise"], "noise")
    empty = data.ImageSet(images[:0], np.zeros(0, "int64"), ["noise"], "noise")
    given = _data.Images(noise, noise, noise)._replace(**{part: empty})
    settings = _settings.Settings(output_dir=str(tmp_path / "new"))
    with pytest.raises(ValueError, match=f"no images to {what} with, of 16"):
        _pretrain.pretrain(settings, "recipe", lambda settings: given)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("images", [None, ""])
def test_image_folder_needs_a_folder(images):
    with pytest.raises(ValueError, match="--images must be (given|a path)"):
        image_folder.read(image_folder.FolderSettings(images=images))


def test_a_folder_of_any_name_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builders, "find_builder", None)  # TFDS is not asked
    for name in ("my-photos", "2024", "cifar10"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (9, 9)).save(tmp_path / name / f"{i}.png")
        settings = image_folder.FolderSettings(images=name, image_size=8)
        assert image_folder.read(settings).train.num_examples == 2
    settings = image_folder.FolderSettings(images="gone")
    with pytest.raises(
        FileNotFoundError, match="that exists. Received: 'gone'"
    ):
        image_folder.read(settings)


def test_a_tilde_stands_for_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    values = flags.FlagValues()
    _flags.define(_settings.Settings(), values)
    values(["program", "--run_dir=~/run", "--output_dir=runs~"])
    settings = _flags.read(flag_values=values)
    assert settings.run_dir == f"{tmp_path}/run"
    assert settings.output_dir == "runs~"


def test_a_bad_image_ends_a_run_if_requested(tmp_path):
    (tmp_path / "notes.jpg").write_text("a list of things to buy")
    settings = image_folder.FolderSettings(
        images=str(tmp_path), on_bad_image="error"
    )
    with pytest.raises(ValueError, match="notes.jpg: Neither"):
        image_folder.read(settings)


def test_a_misspelled_flag_is_refused(tmp_path):
    result = run("cifar10", "--temprature=0.2", f"--output_dir={tmp_path}")
    assert result.returncode != 0
    assert "Unknown command line flag 'temprature'" in result.stderr
    assert "Did you mean: temperature" in result.stderr
    assert len(result.stderr.splitlines()) == 3  # no pages of help


@pytest.mark.parametrize("flag", ["--help", "--helpfull"])
def test_help_lists_the_flags(flag):
    result = run("cifar10", flag)
    assert result.returncode == 0 and result.stderr == ""
    assert result.stdout.startswith(cifar10.__doc__)
    for field in dataclasses.fields(_settings.Settings):
        assert re.search(rf"--(\[no\])?{field.name}:", result.stdout)
    assert ("--verbosity:" in result.stdout) == (flag == "--helpfull")


@pytest.mark.slow
def test_an_error_names_the_flag_that_shows_a_traceback():
    result = run("export")
    assert result.returncode == 1
    message, flag = re.fullmatch(
        r"\nError: (.*)\n\(To see where it happened, add (.*)\.\)\n",
        result.stderr,
    ).groups()
    assert "--model must be given" in message
    result = run("export", flag)
    assert "Traceback (most recent call last)" in result.stderr
    assert f"ValueError: {message}\n" in result.stderr


def test_missing_data_ends_a_run_with_one_message(tmp_path):
    result = run(
        "cifar10",
        f"--data_dir={tmp_path}/none",
        f"--output_dir={tmp_path}/out",
        https_proxy="http://127.0.0.1:9",  # nobody answers: as if offline
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert f"Looked for: {tmp_path}/none/cifar10" in result.stderr
    assert "--data_dir" in result.stderr
    assert "make demo" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_nan_ends_a_run_and_earlier_results_remain(textures_dir, smoke):
    output_dir = smoke[1].parent.parent
    before = {p: p.stat().st_mtime_ns for p in smoke[1].rglob("*")}
    flags = (
        f"--output_dir={output_dir}",
        "--learning_rate=1e30",
        "--bn_splits=1",
    )
    command = programs.smoke(textures_dir, *flags)
    result = programs.finish(programs.start_shallow(*command))
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "The loss became nan at step 2 of epoch 1" in result.stderr
    # The seeds differ, and so do the encoders.
    untrained = re.compile(r"untrained encoder (0\.\d+)")
    values = [untrained.search(r.stdout)[1] for r in (result, smoke[0])]
    assert values[0] != values[1]
    assert before == {p: p.stat().st_mtime_ns for p in smoke[1].rglob("*")}


# Those for ImageNet are of `finetune`, and tried in test_finetune.py.
PRESETS = (ROOT / "recipes").glob("[!i]*.flags")


@pytest.mark.parametrize("file", sorted(PRESETS))
def test_presets_are_valid_settings(file):
    of_dataset = "moco_keras.recipes.dataset" in file.read_text()
    defaults = dataset.DEFAULTS if of_dataset else _settings.Settings()
    values = flags.FlagValues()
    _flags.define(defaults, values)
    flags.DEFINE_string("flagfile", None, "presets", values)
    values(["program", f"--flagfile={file}"])
    settings = _flags.read(type(defaults), values)
    assert (settings == defaults) == (file.stem == "cifar10_v1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 5000}, "--queue_size=4096, 5000 keys"),
        ({"batch_size": 4000, "symmetric": True}, "8000 keys"),
        ({"queue_size": 0}, "--queue_size=0"),
        ({"temperature": 0.0}, "--temperature=0.0"),
        ({"epochs": -1}, "--epochs=-1"),
        ({"momentum": 1.5}, "--momentum=1.5"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        _settings.Settings(**changes)


@pytest.mark.parametrize(("replicas", "splits"), [(1, 8), (2, 4), (16, 1)])
def test_devices_share_the_groups_of_batch_norm(replicas, splits):
    settings = _settings.Settings(width=4, batch_size=16, queue_size=32)
    model = _model.build_model(settings, 16, 8, replicas)
    norms = {
        layer.splits
        for layer in model.query_encoder.layers
        if isinstance(layer, moco_keras.SplitBatchNormalization)
    }
    assert norms == {splits}


@pytest.mark.parametrize(("cores", "threads"), [(1, []), (2, [1]), (8, [])])
def test_two_cores_are_shared_by_two_operations(cores, threads, monkeypatch):
    seen = []
    settings = tf.config.threading
    monkeypatch.setattr(
        settings, "set_intra_op_parallelism_threads", seen.append
    )
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(accelerators, "on_gpu", lambda: False)
    _threads.share_cores()
    assert seen == threads
