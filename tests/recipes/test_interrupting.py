"""Ctrl-C and SIGTERM to whole programs, at every moment."""

import signal
import subprocess
import sys
import time

import programs
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ctrl_c")]
SMALL = ("--width=4", "--batch_size=8", "--bn_splits=1", "--epochs=1")
# Its steps take seconds, and its first one is compiled for as long.
LARGE = ("--backbone=resnet50", "--stem=cifar", "--batch_size=64")


class Program:
    """A program that trains, and what it says."""

    def __init__(self, data_dir, folder, *flags):
        self.run, self._file = folder / "run", folder / "said"
        flags = (
            f"--data_dir={data_dir}",
            f"--run_dir={self.run}",
            "--train_examples=64",
            "--test_examples=16",
            "--queue_size=64",
            *flags,
        )
        with self._file.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moco_keras.recipes.textures", *flags],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=programs.ROOT,
            )

    @property
    def said(self):
        return self._file.read_text()

    def wait_until(self, holds, seconds=200):
        """Waits until something holds; returns how long that took."""
        start = time.monotonic()
        while not holds():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < start + seconds, self.said
            time.sleep(0.02)
        return time.monotonic() - start

    def wait_for(self, words, seconds=200):
        return self.wait_until(lambda: words in self.said, seconds)

    def ends(self, *codes, seconds=60):
        """Whether it ends with one of these codes, and says how to resume."""
        code = self.process.wait(timeout=seconds)
        assert code in codes, (code, self.said)
        assert "Traceback" not in self.said
        assert f"--run_dir={self.run}" in self.said.rpartition("Stop")[2]

    @property
    def checkpoints(self):
        return [int(p.stem) for p in self.run.glob("checkpoints/*.index")]


@pytest.fixture
def start(textures_dir, tmp_path):
    """Starts a program, and ends it with the test."""
    started = []

    def start(*flags):
        started.append(Program(textures_dir, tmp_path, *flags))
        return started[-1]

    yield start
    for program in started:
        program.process.kill()
        program.process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_once_while_the_first_step_is_compiled(start, number):
    """It is answered at once; the step ends, and is saved."""
    program = start(*SMALL)
    program.wait_for("Compiling the first step")
    time.sleep(0.5)
    assert "Stopping" not in program.said
    program.process.send_signal(number)
    program.wait_for("Stopping after this step; a second signal (Ctrl-C)", 3)
    program.ends(128 + number)
    assert "saved after 0 epochs and" in program.said
    (steps,) = program.checkpoints
    assert 1 <= steps <= 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_twice_while_a_long_step_runs(start, number):
    """It ends at once, and nothing is saved."""
    program = start(*LARGE)
    program.wait_for("Compiling the first step")
    time.sleep(2)
    program.process.send_signal(number)
    program.wait_for("Stopping after this step; a second signal (Ctrl-C)", 3)
    time.sleep(0.3)
    program.process.send_signal(number)
    program.ends(128 + number, seconds=10)
    assert "Stopped at once. Nothing is saved yet." in program.said
    assert program.checkpoints == []


def test_twice_with_something_saved(start):
    program = start(*SMALL, "--epochs=50", "--checkpoint_every=5 steps")
    program.wait_until(lambda: program.checkpoints)
    for _ in range(2):
        program.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    # The first one was enough if the step ended before the second, which may
    # then find Python at its own end, where it kills; a shell calls both 130.
    program.ends(130, -signal.SIGINT)
    words = "What was saved before, ", "saved after 0 epochs"
    assert any(each in program.said for each in words)
    assert program.checkpoints


def test_while_results_are_written(start, tmp_path):
    """They are written by the same command, without training again."""
    program = start(*SMALL)
    program.wait_until((program.run / ".partial").exists)
    program.process.send_signal(signal.SIGINT)
    program.ends(130)
    assert not (program.run / "metrics.json").exists()
    assert program.checkpoints == [8]
    again = start(*SMALL)
    assert again.process.wait(timeout=200) == 0, again.said
    assert "Epoch" not in again.said
    assert (program.run / "metrics.json").exists()


def test_before_the_training(start):
    program = start(*SMALL)
    program.wait_for("Reading the images")
    program.process.send_signal(signal.SIGINT)
    # Within C code that runs Python's, of an import for example, Python makes
    # it a death by the signal; a shell calls both 130.
    assert program.process.wait(timeout=30) in (130, -2), program.said
    assert "Traceback" not in program.said
