import concurrent.futures
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

import moco_keras
from moco_keras import textures
from moco_keras.recipes import _settings, _threads

ROOT = Path(__file__).parent.parent
PICTURES = ["curves.png", "views.png", "neighbours.png"]


def run(recipe, *flags):
    return subprocess.run(
        [sys.executable, "-m", f"moco_keras.recipes.{recipe}", *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        timeout=300,
    )


def only_run(folder):
    (found,) = folder.iterdir()
    return found


@pytest.fixture(scope="module")
def run_smoke(textures_dir, tmp_path_factory):
    """Runs the smoke test: gives what it printed and the folder it left."""

    def run_with(seed, data_dir=textures_dir):
        export_dir = tmp_path_factory.mktemp("smoke")
        result = run(
            "textures",
            "--flagfile=recipes/smoke.flags",
            f"--data_dir={data_dir}",
            f"--export_dir={export_dir}",
            f"--seed={seed}",
        )
        assert result.returncode == 0, result.stderr
        return result, only_run(export_dir / "textures")

    return run_with


@pytest.fixture(scope="module")
def smoke(run_smoke):
    return run_smoke(seed=7)


def test_a_run_leaves_everything(smoke):
    result, folder = smoke
    expected = {
        "encoder",
        "logs",
        "model.keras",
        "settings.json",
        "metrics.json",
        "history.csv",
        *PICTURES,
    }
    assert {path.name for path in folder.iterdir()} == expected
    assert (folder / "encoder" / "saved_model.pb").is_file()
    assert list(folder.glob("logs/train/events*"))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [e["epoch"] for e in metrics["history"]] == [1, 2]
    assert metrics["knn_trained"] == metrics["history"][-1]["knn"]
    assert metrics["images_per_second"] > 0
    for name in ("raw_pixels", "untrained", "trained"):
        value = metrics[f"knn_{name}"]
        assert 0 < value < 1
        label = name.replace("_", " ")
        assert re.search(rf"{label} +{value:.3f}", result.stdout)
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["settings"]["seed"] == 7
    assert settings["settings"]["width"] == 4
    assert settings["versions"]["moco_keras"] == moco_keras.__version__
    assert settings["data"]["source"] == "textures/1.0.0"
    assert settings["data"]["train_images"] == 512


def test_the_model_of_a_run_loads(smoke):
    import keras

    model = keras.saving.load_model(smoke[1] / "model.keras")
    images, _ = textures.draw(4, seed=9)
    assert model.predict(images, verbose=0).shape == (4, 128)
    # 2 epochs of 8 steps of 64, K = 192
    assert int(model.queue.pointer) == 2 * 8 * 64 % 192


def numbers(folder):
    """Every weight, and the metrics but for the time they took."""
    import keras

    model = keras.saving.load_model(folder / "model.keras")
    variables = [*model.variables, *model.optimizer.variables]
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["images_per_second"]
    return [(v.path, v.numpy()) for v in variables], metrics


def test_a_seed_gives_the_same_numbers_and_another_gives_others(
    smoke, run_smoke, textures_dir, tmp_path
):
    unprepared = tmp_path  # the data set is drawn first, which changes nothing
    with concurrent.futures.ThreadPoolExecutor() as pool:
        (_, same), (_, other) = pool.map(
            run_smoke, [7, 8], [unprepared, textures_dir]
        )
    weights, metrics = numbers(smoke[1])
    same_weights, same_metrics = numbers(same)
    assert metrics == same_metrics
    # Of each encoder and the velocities: 21 kernels, 20 gammas, 21 betas.
    assert len(weights) > 3 * 62
    for (path, a), (_, b) in zip(weights, same_weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path)
    other_weights, other_metrics = numbers(other)
    assert metrics["history"] != other_metrics["history"]
    kernels = 0
    for (path, a), (_, b) in zip(weights, other_weights, strict=True):
        if path.endswith("kernel"):
            assert not np.array_equal(a, b), path
            kernels += 1
    assert kernels == 2 * 21  # of both encoders


def test_a_misspelt_flag(tmp_path):
    result = run("cifar10", "--temprature=0.2", f"--export_dir={tmp_path}")
    assert result.returncode != 0
    assert "Unknown command line flag 'temprature'" in result.stderr
    assert "Did you mean: temperature" in result.stderr


def test_help_lists_the_flags():
    result = run("cifar10", "--help")
    assert "notebook" in result.stdout
    for field in dataclasses.fields(_settings.Settings):
        assert re.search(rf"--(\[no\])?{field.name}:", result.stdout)


def test_missing_data_ends_at_once_with_one_message(tmp_path):
    result = run(
        "cifar10", f"--data_dir={tmp_path}/none", f"--export_dir={tmp_path}/out"
    )
    if result.returncode == 0:
        pytest.skip("CIFAR-10 can be downloaded here")
    assert "Traceback" not in result.stderr
    assert f"Looked for: {tmp_path}/none/cifar10" in result.stderr
    assert "--data_dir" in result.stderr
    assert "make demo" in result.stderr
    assert not (tmp_path / "out").exists()


def test_nan_ends_the_run_and_keeps_what_was_exported(textures_dir, smoke):
    export_dir = smoke[1].parent.parent
    before = {p: p.stat().st_mtime_ns for p in smoke[1].rglob("*")}
    result = run(
        "textures",
        "--flagfile=recipes/smoke.flags",
        f"--data_dir={textures_dir}",
        f"--export_dir={export_dir}",
        "--learning_rate=inf",
    )
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "The loss became nan at step 2 of epoch 1" in result.stderr
    assert before == {p: p.stat().st_mtime_ns for p in smoke[1].rglob("*")}


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.flags")))
def test_presets_are_settings(file):
    values = flags.FlagValues()
    _settings.define_flags(_settings.Settings(), values)
    flags.DEFINE_string("flagfile", None, "presets", values)
    values(["program", f"--flagfile={file}"])
    settings = _settings.from_flags(values)
    if file.stem == "cifar10_v1":
        assert settings == _settings.Settings()
    else:
        assert settings != _settings.Settings()


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


@pytest.mark.parametrize(("cores", "threads"), [(1, []), (2, [1]), (8, [])])
def test_two_cores_are_shared_by_two_operations(cores, threads, monkeypatch):
    seen = []
    settings = tf.config.threading
    monkeypatch.setattr(
        settings, "set_intra_op_parallelism_threads", seen.append
    )
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    _threads.share_cores()
    assert seen == threads
