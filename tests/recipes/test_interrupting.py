"""Ctrl-C and SIGTERM sent to whole programs, at every moment."""

import os
import re
import signal
import subprocess
import sys
import time

import programs
import pytest

from moco_keras.recipes import _data, textures

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ctrl_c")]
WHOLE = ("-m", "moco_keras.recipes.textures")
SHALLOW = programs.shallow("textures")
SMALL = ("--width=4", "--batch_size=8", "--bn_splits=1", "--epochs=1")
# A step takes seconds, and so does compiling the first one.
LARGE = ("--backbone=resnet50", "--stem=cifar", "--batch_size=64")


class Program:
    """A program that trains, and its output."""

    def __init__(self, data_dir, folder, program, *flags):
        self.run, self._file = folder / "run", folder / "output"
        self.flags = (
            f"--data_dir={data_dir}",
            f"--run_dir={self.run}",
            "--train_examples=64",
            "--test_examples=16",
            "--queue_size=64",
            *flags,
        )
        with self._file.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *program, *self.flags],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=programs.ROOT,
                env={**os.environ, "PYTHONPATH": str(programs.ROOT)},
            )

    @property
    def output(self):
        return self._file.read_text()

    def wait_until(self, holds, seconds=200):
        """Waits until `holds()`; returns the seconds that it took."""
        start = time.monotonic()
        while not holds():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < start + seconds, self.output
            time.sleep(0.02)
        return time.monotonic() - start

    def wait_for(self, words, seconds=200):
        return self.wait_until(lambda: words in self.output, seconds)

    def assert_ends(self, *codes, seconds=60):
        """Checks that it ends with one of the codes and says how to resume."""
        code = self.process.wait(timeout=seconds)
        assert code in codes, (code, self.output)
        assert "Traceback" not in self.output
        assert f"--run_dir={self.run}" in self.output.rpartition("Stop")[2]

    @property
    def checkpoints(self):
        return [int(p.stem) for p in self.run.glob("checkpoints/*.index")]


@pytest.fixture
def start(textures_dir, tmp_path):
    """Starts a program, and ends it with the test."""
    started = []

    def start(program, *flags):
        started.append(Program(textures_dir, tmp_path, program, *flags))
        return started[-1]

    yield start
    for program in started:
        program.process.kill()
        program.process.wait()


# Here one number at each moment: `test_signals.py` has both.
def test_one_signal_while_the_first_step_is_compiled(start):
    """The program answers at once; the step ends and is saved."""
    program = start(SHALLOW, *SMALL)
    program.wait_for("Compiling the first step")
    time.sleep(0.5)
    assert "Stopping" not in program.output
    program.process.send_signal(signal.SIGINT)
    program.wait_for("Stopping after this step; a second signal (Ctrl-C)", 3)
    program.assert_ends(130)
    assert "saved after 0 epochs and" in program.output
    (steps,) = program.checkpoints
    assert 1 <= steps <= 8


def test_two_signals_during_a_long_step(start):
    """The program ends at once and saves nothing."""
    program = start(WHOLE, *LARGE)
    program.wait_for("Compiling the first step")
    time.sleep(2)
    program.process.send_signal(signal.SIGTERM)
    program.wait_for("Stopping after this step; a second signal (Ctrl-C)", 3)
    time.sleep(0.3)
    program.process.send_signal(signal.SIGTERM)
    program.assert_ends(143, seconds=10)
    assert "Stopped at once. Nothing is saved yet." in program.output
    assert program.checkpoints == []


def test_two_signals_after_a_checkpoint(start):
    program = start(
        SHALLOW, *SMALL, "--epochs=50", "--checkpoint_every=5 steps"
    )
    program.wait_until(lambda: program.checkpoints)
    for _ in range(2):
        program.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    # If the step ends before the second signal, that one may arrive as Python
    # shuts down, and kill it. A shell reports 130 in both cases.
    program.assert_ends(130, -signal.SIGINT)
    words = r"What was saved before, |saved after \d+ epochs and"
    assert re.search(words, program.output), program.output
    assert program.checkpoints


@pytest.mark.usefixtures("shallow_networks")
def test_a_signal_while_results_are_written(start, capsys):
    """The same command writes them, without training again."""
    program = start(SHALLOW, *SMALL)
    program.wait_until((program.run / ".partial").exists)
    program.process.send_signal(signal.SIGINT)
    program.assert_ends(130)
    assert not (program.run / "metrics.json").exists()
    assert program.checkpoints == [8]
    read = _data.by_name("textures")
    programs.here(["textures", *program.flags], textures._DEFAULTS, read)
    assert "Epoch" not in capsys.readouterr().out
    assert (program.run / "metrics.json").exists()


def test_a_signal_before_training(start):
    program = start(WHOLE, *SMALL)
    program.wait_for("Reading the images")
    program.process.send_signal(signal.SIGINT)
    # Within C code that runs Python code, such as an import, the signal kills
    # Python. A shell reports 130 in both cases.
    assert program.process.wait(timeout=30) in (130, -2), program.output
    assert "Traceback" not in program.output
