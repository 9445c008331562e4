"""Kills a run at many moments, and compares it with an undisturbed one.

    python tests/helpers/soak.py --kills=20 --replicas=2

Runs the smoke recipe twice, with shallow networks. One of the runs is killed
with SIGKILL and started again, many times. In the end, the weights, queue,
metrics.json and history.csv of both runs must be the same to the bit.
"""

import argparse
import collections
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import programs

import moco_keras  # noqa: F401 (registers what a saved model is made of)

STEPS = 8  # of 64 images, of 512
TWO_DEVICES = """
import runpy, replicas, shallow
replicas.logical_devices(2)
with shallow.networks():
    runpy.run_module("moco_keras.recipes.textures", run_name="__main__")
"""


class Run:
    """A run of the smoke recipe, in one process after another."""

    def __init__(self, folder, data_dir, replicas, epochs):
        self.folder, self.log = folder / "run", folder / "log"
        folder.mkdir(parents=True)
        how = {
            1: programs.shallow("textures"),
            2: ["-c", TWO_DEVICES, "--strategy=mirrored"],
        }
        _, *flags = programs.smoke(
            data_dir,
            f"--run_dir={self.folder}",
            f"--epochs={epochs}",
            "--test_examples=2000",  # a slow evaluation
            "--checkpoint_every=1 step",
        )
        self.command = [sys.executable, "-u", *how[replicas], *flags]

    def start(self):
        python_path = programs.ROOT, programs.ROOT / "tests" / "helpers"
        with self.log.open("a") as log:
            return subprocess.Popen(
                self.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=programs.ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(map(str, python_path)),
                },
            )

    def finish(self):
        code = self.start().wait()
        assert code == 0, self.log.read_text()[-2000:]

    def kill(self, moment):
        """Starts a process, kills it at a moment; False if it ended before."""
        before = self.saved(), self.evaluated()
        more = random.randint(1, STEPS - 1)
        process = self.start()
        while process.poll() is None:
            if self.is_at(moment, before, more):
                process.kill()
                process.wait()
                return True
            time.sleep(0.001)  # the run needs the core
        assert process.returncode == 0, self.log.read_text()[-2000:]
        return False

    def is_at(self, moment, before, more):
        if moment == "writing":
            return any(self.folder.glob("checkpoints/*.tempstate*"))
        saved, evaluated = self.saved(), self.evaluated()
        if moment == "in an epoch":
            return saved >= before[0] + more
        if moment == "between epochs":
            return evaluated > before[1] and evaluated * STEPS > saved
        # A step of about 30 ms is left, and then an evaluation of 300 ms.
        if saved > before[0] and saved % STEPS == STEPS - 1:
            time.sleep(random.uniform(0.05, 0.3))
            return True
        return False

    def saved(self):
        """The number of steps before the newest checkpoint."""
        names = [p.stem for p in self.folder.glob("checkpoints/*.index")]
        return int(max(names, default=0))

    def evaluated(self):
        """The number of epochs in history.csv."""
        try:
            return (self.folder / "history.csv").read_text().count("\n") - 1
        except FileNotFoundError:
            return 0


MOMENTS = ("in an epoch", "writing", "evaluating", "between epochs")


def compare(run, other):
    """Raises an AssertionError if two runs differ."""
    for name in ("metrics.json", "history.csv"):
        files = [(r.folder / name).read_bytes() for r in (run, other)]
        assert files[0] == files[1], name
    (weights, _), (others, _) = (
        programs.numbers(r.folder) for r in (run, other)
    )
    # 20 of each encoder's are trained, and the optimizer has as many.
    assert len(weights) == len(others) > 3 * 20
    for (path, a), (_, b) in zip(weights, others, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path)


def soak(folder, data_dir, kills, epochs, replicas, seed, minutes):
    """Runs, kills and compares; returns a report."""
    start = time.monotonic()
    random.seed(seed)
    undisturbed = Run(folder / "undisturbed", data_dir, replicas, epochs)
    undisturbed.finish()
    run = Run(folder / "killed", data_dir, replicas, epochs)
    killed = collections.Counter()
    steps = []
    for i in range(kills):
        if time.monotonic() - start > 60 * minutes:
            break
        moment = MOMENTS[i % len(MOMENTS)]
        assert run.kill(moment), (
            f"The run ended before it was killed: {moment}."
        )
        killed[moment] += 1
        steps.append(run.saved())
    run.finish()
    compare(run, undisturbed)
    return {
        "replicas": replicas,
        "killed": sum(killed.values()),
        "moments": killed,
        "after_steps": steps,
        "seconds": round(time.monotonic() - start),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--replicas", type=int, choices=(1, 2), default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes",
        type=float,
        default=10,
        help="stops killing after this time",
    )
    args = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        report = soak(folder, folder / "data", **args)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
