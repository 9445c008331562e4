"""Checks what only a machine with a GPU can show, in less than ten minutes.

    make gpu

Each check runs in its own process with a time limit, so that a crash or a hang
costs only its own row. A table is printed last. The exit code is 0 if all that
is asserted holds, 1 if something does not, and 2 if TensorFlow sees no GPU;
`make` turns both into 2. A check that had no time left has not failed.
"""

import contextlib
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import deterministic
import gpu_timings
import keras
import pytest
import tensorflow as tf
import test_replicas
from programs import ROOT

from moco_keras.distribution import accelerators

SECONDS = 570  # for all checks together


class Row(NamedTuple):
    """A line of the table; `passed` is None if nothing is asserted."""

    check: str
    measured: str
    value: str
    passed: bool | None = None


class Check(NamedTuple):
    """The work of a process: a generator of (measured, value, passed)."""

    work: Callable
    settings: dict
    seconds: int  # at most
    gpus: int = 1  # 2 means two or more


def one_gpu_as_two():
    """Trains on one logical GPU and on two, and runs the tests of replicas."""
    with tempfile.TemporaryDirectory() as folder:
        started = [
            test_replicas.start("compare", count, Path(folder) / str(count))
            for count in (1, 2)
        ]
        one, two = (test_replicas.finish(*process) for process in started)
    for name in ("plain", "symmetric v2"):
        verdict = compared(test_replicas.assert_same, two, one, name)
        yield f"two replicas train as one device: {name}", *verdict
    results = {"one": one, "two": two}
    for name, test in vars(test_replicas).items():
        if name.startswith("test_"):
            needed = list(inspect.signature(test).parameters)
            if needed in (["one", "two"], ["two"]):
                verdict = compared(test, *(results[x] for x in needed))
                words = name.removeprefix("test_").replace("_", " ")
                yield f"two replicas: {words}", *verdict


def compared(test, *results):
    """The value to print for a test, and whether it passes."""
    try:
        test(*results)
    except AssertionError as error:
        traceback.print_exc()
        return difference(str(error).splitlines()), False
    return "as expected", True


def difference(lines):
    """The line of an error with the size of a difference, or the first line."""
    sizes = [line for line in lines if "absolute difference" in line]
    return (sizes or list(filter(None, lines)) or ["not as expected"])[0]


def determinism(kinds, depth):
    """Compares runs with deterministic operations, to the bit."""
    with tempfile.TemporaryDirectory() as folder:
        results = deterministic.differences(Path(folder), kinds, depth)
    for kind, (arrays, second, resumed) in results.items():
        ways = {"run again": second, "stopped and resumed": resumed}
        for way, differ in ways.items():
            value = f"{differ} of {arrays} arrays differ"
            yield f"small {kind} model, {way}", value, differ == 0


def unit_tests(paths, processes):
    """Runs the tests that are not slow, in processes that share the GPU."""
    stats = {}

    class Watch:
        def pytest_terminal_summary(self, terminalreporter):
            stats.update(terminalreporter.stats)

    arguments = ["-m", "not slow", f"--numprocesses={processes}"]
    code = pytest.main([*arguments, "--dist=loadfile", *paths], [Watch()])
    kinds = ("passed", "failed", "error", "skipped")
    counts = ", ".join(f"{len(stats.get(kind, ()))} {kind}" for kind in kinds)
    yield "tests that are not slow, without TF32", counts, code == 0
    for report in (*stats.get("failed", ()), *stats.get("error", ())):
        lines = report.longreprtext.splitlines()
        errors = [line[1:].strip() for line in lines if line.startswith("E  ")]
        yield report.nodeid, difference(errors), False


_STEP = {
    **{"width": 64, "batch_size": 256, "queue_size": 4096, "bn_splits": 1},
    **{"steps": 100, "turns": 3},
}
CHECKS = {
    "replicas": Check(one_gpu_as_two, {}, 120),
    "determinism": Check(
        determinism,
        {"kinds": list(deterministic.KINDS), "depth": "whole"},
        120,
    ),
    **{
        f"step, {precision}, {'XLA' if jit else 'no XLA'}": Check(
            gpu_timings.step,
            {**_STEP, "precision": precision, "jit": jit, "matrix": 8192},
            90,
        )
        for precision in ("float32", "mixed_bfloat16")
        for jit in (True, False)
    },
    "metrics": Check(
        gpu_timings.metrics, {**_STEP, "precision": "float32"}, 90
    ),
    "all-reduce": Check(
        gpu_timings.all_reduce,
        {"backbone": "resnet50", "image_size": 224, "turns": 5},
        60,
        gpus=2,
    ),
    "shuffle BN": Check(
        gpu_timings.gather, {"images": 32, "side": 224, "turns": 5}, 40, gpus=2
    ),
    # Last, in the time that the others leave.
    "unit tests": Check(
        unit_tests,
        {"paths": ["tests"], "processes": min(8, os.cpu_count())},
        400,
    ),
}


def rows_of(name, check, seconds):
    """Runs a check in its own process, for at most `seconds`; its rows."""
    gpus = len(tf.config.get_visible_devices("GPU"))
    if check.gpus > max(1, gpus):
        return [Row(name, "an exchange between GPUs", "needs two GPUs")]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests/distribution"}
    env["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    if check.gpus == 1:
        visible = env.get("CUDA_VISIBLE_DEVICES", "0")
        env["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
    command = [sys.executable, __file__, name, json.dumps(check.settings)]
    rows = rows_printed(name, command, max(1, seconds), env)
    if seconds < check.seconds and rows and rows[-1].value.startswith("took"):
        # It had less time than it needs, which says nothing about the GPU.
        rows[-1] = rows[-1]._replace(value="no time left", passed=None)
    return rows


def rows_printed(name, command, seconds, env=None):
    """The rows that a process prints, and one more if it fails."""
    print(f"{name}: at most {seconds:.0f} s", flush=True)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=env,
        start_new_session=True,  # so that its children can be killed with it
    )
    try:
        out, _ = process.communicate(timeout=seconds)
        code = process.returncode
        problem = code and f"ended with exit code {code}; see above"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
        problem = f"took longer than {seconds:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    rows = []
    for line in out.splitlines():
        if line.startswith("ROW "):
            rows.append(Row(name, *json.loads(line.removeprefix("ROW "))))
        else:
            print(line, flush=True)
    if problem:
        rows.append(Row(name, "the process", problem, False))
    return rows


def table(rows):
    """A table in Markdown."""
    verdicts = {True: "yes", False: "NO", None: "-"}
    lines = [
        ("check", "what was measured", "value", "passed"),
        *((*row[:3], verdicts[row.passed]) for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines
    )


def without_gpu():
    """The message if TensorFlow sees no GPU."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    hides = f" CUDA_VISIBLE_DEVICES is {hidden!r}." * (hidden is not None)
    python, version = sys.executable, tf.__version__
    ask = "tf.config.list_physical_devices('GPU')"
    return f"""\
There is no GPU that TensorFlow can use, so nothing was checked.
TensorFlow {version} was asked for {ask}: it is empty.{hides}
The check needs a machine with an NVIDIA GPU and its driver, where `nvidia-smi`
lists the GPU, and CUDA's libraries, which this installs:
    {python} -m pip install "tensorflow[and-cuda]=={version}"
If the GPU is still not found, this shows which library cannot be opened:
    TF_CPP_MIN_LOG_LEVEL=0 TF_CPP_VMODULE=dso_loader=1 \\
        {python} -c "import tensorflow as tf; {ask}\""""


def main():
    """Runs all checks, and returns the exit code."""
    if not accelerators.on_gpu():
        print(without_gpu(), file=sys.stderr)
        return 2
    end = time.monotonic() + SECONDS
    rows = []
    for name, check in CHECKS.items():
        left = end - time.monotonic()
        rows += rows_of(name, check, min(check.seconds, left))
    gpus = tf.config.get_visible_devices("GPU")
    names = accelerators.describe(len(gpus))
    print(f"\n{names}; TensorFlow {tf.__version__}, Keras {keras.__version__}")
    print(table(rows))
    return int(any(row.passed is False for row in rows))


def work(name, settings):
    """Runs a check in this process, and prints its rows."""
    for row in CHECKS[name].work(**settings):
        print("ROW", json.dumps(row), flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(main())
    work(sys.argv[1], json.loads(sys.argv[2]))
