"""The benchmark's parts; its measurements are not judged."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from moco_keras import data
from moco_keras.recipes.benchmark import __main__ as benchmark
from moco_keras.recipes.benchmark import data_files, sides


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


@pytest.mark.slow
def test_the_error_names_a_side_that_dies():
    with pytest.raises(ChildProcessError, match="moco_keras ended with exit"):
        sides.Side("moco_keras", sides.OURS, {"cores": 1})


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
