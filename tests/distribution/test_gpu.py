"""The parts of `make gpu`, as far as a CPU can run them."""

import json
import re
import subprocess
import sys
import time
from unittest import mock

import gpu
import gpu_timings
import keras
import numpy as np
import pytest
import replicas
import tensorflow as tf
import test_replicas
from programs import ROOT

from moco_keras import build_encoder

_STEP = {"width": 4, "batch_size": 8, "queue_size": 16, "steps": 2, "turns": 1}
# Settings that make a check small, and the least number of its rows.
TINY = {
    "metrics": (_STEP, 2),
    "unit tests": (
        {"paths": ["tests/system/test_paths.py"], "processes": 1},
        1,
    ),
}

PATH = f"{ROOT}:{ROOT}/tests/distribution"


def tiny(name, settings, seconds=250):
    """The rows of a check with smaller settings."""
    check = gpu.CHECKS[name]
    check = check._replace(settings={**check.settings, **settings})
    return gpu.rows_of(name, check, seconds)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_check_runs_on_a_cpu(name, capfd):
    settings, count = TINY[name]
    rows = tiny(name, settings)
    assert len(rows) >= count, capfd.readouterr()
    asserts = True if name == "unit tests" else None
    assert [row.passed for row in rows] == [asserts] * len(rows), rows


@pytest.mark.slow
def test_figures_of_a_step_agree():
    settings = {**_STEP, "matrix": 64}
    rows = tiny("step, mixed_bfloat16, no XLA", settings)
    assert [row.passed for row in rows] == [None] * 3
    images, ms, share = rows
    assert ms.measured == "ms a step of 8 images"
    product = float(images.value) * float(ms.value)
    assert product == pytest.approx(8000, rel=0.05)
    assert share.measured.endswith("64 x 64 matrices reach, bfloat16")
    assert re.fullmatch(r"\d+% of [\d.e-]+ TFLOP/s", share.value)


WITH_TWO_DEVICES = (
    "import replicas, gpu, json, sys; replicas.logical_devices(2); "
    "gpu.work(sys.argv[1], json.loads(sys.argv[2]))"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, settings, count",
    [
        (
            "all-reduce",
            {"backbone": "resnet18", "image_size": 32, "width": 4, "turns": 1},
            3,
        ),
        ("shuffle BN", {"images": 4, "side": 8, "turns": 1}, 2),
    ],
)
def test_exchanges_run_between_parts_of_a_cpu(name, settings, count):
    settings = json.dumps(settings)
    command = [sys.executable, "-c", WITH_TWO_DEVICES, name, settings]
    env = {
        "PYTHONPATH": f"{PATH}:{ROOT}/tests/helpers",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    rows = gpu.rows_printed(name, command, 100, env)
    assert [row.passed for row in rows] == [None] * count
    assert all(float(row.value) > 0 for row in rows)


def test_a_check_without_time_has_not_failed(monkeypatch):
    late = gpu.Row("metrics", "the process", "took longer than 5 s", False)
    monkeypatch.setattr(gpu, "rows_printed", lambda *_: [late])
    check = gpu.CHECKS["metrics"]
    (row,) = gpu.rows_of("metrics", check, seconds=5)
    assert (row.value, row.passed) == ("no time left", None)
    (row,) = gpu.rows_of("metrics", check, check.seconds)
    assert row == late


@pytest.mark.parametrize("name", ["all-reduce", "shuffle BN"])
def test_an_exchange_needs_two_gpus(name, monkeypatch):
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda x: [x])
    (row,) = gpu.rows_of(name, gpu.CHECKS[name], seconds=1)
    assert (row.value, row.passed) == ("needs two GPUs", None)


@pytest.mark.slow
def test_without_a_gpu_it_says_so():
    ended = subprocess.run(
        [sys.executable, str(ROOT / "tests/helpers/gpu.py")],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": PATH, "CUDA_VISIBLE_DEVICES": "-1"},
    )
    assert ended.returncode == 2
    assert "There is no GPU that TensorFlow can use" in ended.stderr
    assert "CUDA_VISIBLE_DEVICES is '-1'" in ended.stderr
    assert 'pip install "tensorflow[and-cuda]==' in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize("verdict, code", [(None, 0), (True, 0), (False, 1)])
def test_main_prints_a_table(verdict, code, monkeypatch, capsys):
    def rows_of(name, check, seconds):
        assert 0 < seconds <= check.seconds
        return [gpu.Row(name, "something", "1.5", verdict)]

    config = tf.config
    monkeypatch.setattr(config, "get_visible_devices", lambda x: [f"a {x}"])
    details = {"a GPU": {"device_name": "Some Card"}}
    monkeypatch.setattr(config.experimental, "get_device_details", details.get)
    monkeypatch.setattr(gpu, "rows_of", rows_of)
    assert gpu.main() == code
    lines = capsys.readouterr().out.splitlines()
    title, heading, line, first = lines[1:5]
    assert title.startswith("Some Card; TensorFlow ")
    assert len(lines[4:]) == len(gpu.CHECKS)
    assert re.fullmatch(r"\| check +\| what was .* \| passed \|", heading)
    assert set(line) == set("| -")
    said = {None: "-", True: "yes", False: "NO"}[verdict]
    assert re.fullmatch(rf"\| replicas +\| something .* {said} +\|", first)


def printed(program, seconds=20):
    command = [sys.executable, "-c", program]
    return gpu.rows_printed("a check", command, seconds)


def test_rows_are_read_and_the_rest_is_printed(capsys):
    rows = printed("print('hello'); print('ROW [\"a\", \"b\", true]')")
    assert rows == [gpu.Row("a check", "a", "b", True)]
    assert "hello" in capsys.readouterr().out


def test_a_crash_adds_a_failed_row():
    program = 'print(\'ROW ["a", "b", null]\', flush=True); import os; '
    kept, crash = printed(program + "os.abort()")
    assert (kept.value, kept.passed) == ("b", None)
    assert crash.passed is False and "exit code -6" in crash.value


def test_a_hang_is_killed_with_its_children(tmp_path):
    beat = f"while :; do touch {tmp_path}/beat; sleep 0.1; done"
    program = (
        "import subprocess, time; "
        f"subprocess.Popen(['sh', '-c', {beat!r}]); time.sleep(60)"
    )
    (row,) = printed(program, seconds=2)
    assert row.passed is False and row.value == "took longer than 2 s"
    (tmp_path / "beat").unlink()
    time.sleep(0.5)
    assert not (tmp_path / "beat").exists()


def test_operations_are_counted():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(5, 3, strides=2)(inputs)  # 3 x 3 positions
    x = keras.layers.Dense(7)(keras.layers.GlobalAveragePooling2D()(x))
    encoder = keras.Model(inputs, x)
    expected = 2 * 9 * (3 * 3 * 3 * 5) + 2 * 5 * 7
    assert gpu_timings.forward_operations(encoder) == expected
    # ResNet-50 is known to take 4.1 billion multiplications.
    operations = gpu_timings.forward_operations(build_encoder("resnet50"))
    assert operations == pytest.approx(2 * 4.09e9, rel=0.01)


def test_seconds_are_the_median_after_the_first_turn(monkeypatch):
    times = iter([0, 9, 9, 10, 20, 22, 30, 37])  # of 9, 1, 2 and 7 s
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    assert gpu_timings.median_seconds(lambda: None, turns=3) == 2


def test_results_are_compared_as_the_tests_do(capsys):
    one = {"plain/loss": np.zeros(3), "plain/0 keys": np.ones(2)}
    two = {"plain/loss": np.full(3, 2e-5), "plain/0 keys": np.ones(2)}
    same = test_replicas.assert_same
    assert gpu.compared(same, one, one, "plain") == ("as expected", True)
    said, passed = gpu.compared(same, two, one, "plain")
    assert not passed and re.search(r"absolute difference.*2\.e-05", said)
    assert "plain/loss" in capsys.readouterr().err
    identical = test_replicas.test_replicas_stay_identical
    assert gpu.compared(identical, {})[1] is False
    said, _ = gpu.compared(np.testing.assert_array_equal, ["a"], ["b"])
    assert said == "Arrays are not equal"
    assert gpu.difference([]) == "not as expected"


@pytest.mark.slow
def test_failed_tests_get_rows(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import numpy as np, pytest\n"
        "def test_a(): pass\n"
        "def test_b(): np.testing.assert_allclose(2.5, 2, rtol=0, atol=0.1)\n"
        "def test_c(): assert 1 > 2\n"
        "def test_d(): pytest.skip()\n"
        "@pytest.mark.slow\n"
        "def test_e(): assert 1 > 2\n"
    )
    paths = [str(tmp_path), "-cpyproject.toml"]
    rows = tiny("unit tests", {"paths": paths, "processes": 1}, seconds=60)
    assert [(row.measured[-6:], row.value) for row in rows] == [
        ("t TF32", "1 passed, 2 failed, 0 error, 1 skipped"),
        ("test_b", "Max absolute difference among violations: 0.5"),
        ("test_c", "assert 1 > 2"),
    ]
    assert not any(row.passed for row in rows)


def test_a_gpu_is_split_with_a_limit_for_each_part(monkeypatch):
    split = mock.Mock()
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda x: [f"a {x}"])
    monkeypatch.setattr(tf.config, "set_logical_device_configuration", split)
    replicas.logical_devices(2)
    (device, parts), _ = split.call_args
    assert device == "a GPU"
    assert [part.memory_limit for part in parts] == [1024, 1024]
