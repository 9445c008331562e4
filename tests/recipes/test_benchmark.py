"""The benchmark's parts; its measurements are not judged."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import app

from moco_keras import data
from moco_keras.recipes.benchmark import __main__ as benchmark
from moco_keras.recipes.benchmark import data_files, sides, time_to_knn


def test_unknown_benchmarks_are_refused():
    ended = subprocess.run(
        [sys.executable, "-m", "moco_keras.recipes.benchmark", "--only=stop"],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert "--only must list some of step, " in ended.stderr
    assert "Received: stop" in ended.stderr


@pytest.mark.slow
def test_sides_take_turns_and_are_compared(monkeypatch, capsys):
    settings = {"work": "queue", "steps": 2, "batch_size": 8, "cores": 1}
    works = [{**settings, "queue_size": size} for size in (32, 64)]
    monkeypatch.setitem(benchmark.BENCHMARKS, "queue", works)
    monkeypatch.setattr(benchmark, "_common", dict)
    monkeypatch.setattr(sides.time, "sleep", lambda seconds: None)
    flags = {"repeats": 3, "peer": None}
    monkeypatch.setattr(benchmark, "FLAGS", type("Flags", (), flags))
    benchmark._measure("queue", files={})
    *lines, ratio = map(json.loads, capsys.readouterr().out.splitlines())
    assert [side["settings"]["queue_size"] for side in lines] == [32, 64]
    for side in lines:
        turns = side["of_each_turn"]
        assert len(turns) == 3 and min(turns) > 0
        assert side["milliseconds"] == sorted(turns)[1]
        assert side["images_per_second"] == pytest.approx(
            16_000 / side["milliseconds"], rel=0.01
        )
        assert side["peak_memory_mib"] > 100
        assert set(side["versions"]) == {"keras", "tensorflow", "python"}
    assert ratio["ratio_of_times"] == pytest.approx(
        lines[0]["milliseconds"] / lines[1]["milliseconds"], rel=0.01
    )
    assert ratio["which_differ_by"] == {"queue_size": [32, 64]}


def test_the_error_names_a_side_that_dies():
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(
        ChildProcessError, match="moco_keras ended with exit code 3"
    ):
        sides.Side("moco_keras", command, {"cores": 1})


def test_drawn_photographs_have_realistic_file_sizes():
    picture = data_files.draw_photograph(0)
    assert picture.shape == (375, 500, 3)
    size = len(tf.io.encode_jpeg(picture, quality=90).numpy())
    assert 40_000 < size < 70_000


@pytest.mark.slow
def test_a_data_set_is_enlarged(textures_dir, tmp_path):
    def labels(split, folder):
        builder = data.find_builder("textures", folder)
        decoders = {"image": tfds.decode.SkipDecoding()}
        batches = builder.as_dataset(split=split, decoders=decoders).batch(1000)
        return np.concatenate([x["label"] for x in batches])

    small = labels("train", textures_dir)
    wanted = 2 * len(small) + 1
    data_files.link_again("textures", textures_dir, tmp_path, wanted)
    large = labels("train", tmp_path)
    assert len(large) == 3 * len(small)
    np.testing.assert_array_equal(np.bincount(large), 3 * np.bincount(small))
    np.testing.assert_array_equal(
        labels("test", tmp_path), labels("test", textures_dir)
    )


def test_a_peer_on_the_processor_is_not_compared_with_a_gpu(monkeypatch):
    flags = {"only": ["time_to_knn"], "peer": "lightly"}
    monkeypatch.setattr(benchmark, "FLAGS", type("Flags", (), flags))
    monkeypatch.setattr(benchmark.accelerators, "on_gpu", lambda: True)
    with pytest.raises(app.UsageError, match="set CUDA_VISIBLE_DEVICES=-1"):
        benchmark.main(["benchmark"])


def test_minutes_are_compared_in_a_clone(monkeypatch, tmp_path):
    monkeypatch.setattr(time_to_knn, "FLAG_FILE", tmp_path / "none.flags")
    with pytest.raises(FileNotFoundError, match="none.flags. Run the"):
        time_to_knn.measure(1, [0], None, 64, None)


# A library whose features are the labels, which it finds in the first pixel.
_PEER = """
import json, sys, numpy
settings = json.loads(sys.argv[1])
data = numpy.load(settings["data"])
found = {n: numpy.eye(10)[data[n][:, 0, 0, 0]] for n in ("train", "test")}
numpy.savez(settings["features"], **found)
print("a line before")
print(json.dumps({"minutes_of_fit": settings["minutes"], "passes": 0.5}))
"""


def test_both_sides_are_trained_in_turn_and_judged_alike(
    monkeypatch, capsys, tmp_path
):
    rng = np.random.default_rng(0)
    commands = []

    def load(name, split, data_dir):
        labels = rng.integers(0, 10, 400)
        images = np.zeros((400, 32, 32, 3), "uint8")
        images[:, 0, 0, 0] = labels
        images[:100, 0, 0, 0] = 0  # for a quarter the features are wrong
        return data.ImageSet(images, labels, [], name)

    ran = subprocess.run

    def run(command, **kwargs):
        if command[0] != "peer":
            commands.append(command)
            run_dir = next(
                Path(flag.removeprefix("--run_dir="))
                for flag in command
                if flag.startswith("--run_dir=")
            )
            run_dir.mkdir(parents=True)
            for name, content in {
                "metrics": {"knn_trained": 0.75},
                "timing": {"seconds": 90, "images_per_second": 5.0},
                "settings": {
                    "settings": {
                        "epochs": 2,
                        "steps_per_epoch": 10,
                        "batch_size": 30,
                    },
                    "data": {"train_images": 400},
                    "device": "some",
                    "versions": {},
                },
            }.items():
                (run_dir / f"{name}.json").write_text(json.dumps(content))
            return None
        return ran([sys.executable, "-c", _PEER, *command[1:]], **kwargs)

    monkeypatch.setattr(data, "load", load)
    monkeypatch.setattr(time_to_knn.subprocess, "run", run)
    time_to_knn.measure(1.5, [3, 4], ["peer"], 16, "somewhere", tmp_path)
    *lines, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert [line["library"] for line in lines] == ["lightly", "moco_keras"] * 2
    assert [line["seed"] for line in lines] == [3, 3, 4, 4]
    assert {line["minutes_of_fit"] for line in lines} == {1.5}
    assert lines[0]["settings"]["width"] == 16
    assert lines[0]["knn"] == pytest.approx(0.775, abs=0.03)
    assert lines[1]["knn"] == 0.75 and lines[1]["passes"] == 1.5
    assert last["median_knn"]["moco_keras"] == 0.75
    for seed, command in zip((3, 4), commands, strict=True):
        assert (tmp_path / f"seed_{seed}/metrics.json").exists()
        assert command[1:3] == ["-m", "moco_keras.recipes.cifar10"]
        assert f"--flagfile={time_to_knn.FLAG_FILE}" in command
        assert "--minutes=1.5" in command and f"--seed={seed}" in command
        assert "--data_dir=somewhere" in command
        assert "--precision=auto" in command
    with pytest.raises(FileExistsError, match="begin with --seed=5"):
        time_to_knn.measure(1.5, [4, 5], None, 16, None, tmp_path)
    assert len(commands) == 2
    assert time_to_knn.FLAG_FILE.exists()
