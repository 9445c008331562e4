"""Runs the programs, mostly each in its own process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
from absl import flags

from moco_keras.recipes import _flags, _pretrain

ROOT = Path(__file__).parents[2]
# Settings of a run that takes seconds.
TINY = {
    "width": 2,
    "bn_splits": 1,
    "batch_size": 8,
    "queue_size": 16,
    "epochs": 2,
    "knn_every": 1,
    "precision": "float32",
    "checkpoint_every": "1 step",
}
# What a run with a kNN leaves in its folder.
RUN_FILES = {
    "checkpoints",
    "encoder",
    "logs",
    "model.keras",
    "settings.json",
    "metrics.json",
    "timing.json",
    "history.csv",
    "curves.png",
    "health.png",
    "map.json",
    "report.html",
    "views.png",
    "neighbours.png",
}


def start(recipe, *flags, **env):
    """Starts a program, which sets TensorFlow's log level itself."""
    return _start(["-m", f"moco_keras.recipes.{recipe}", *flags], env)


def start_shallow(recipe, *flags, **env):
    """Starts a program that trains shallow networks."""
    return _start([*shallow(recipe), *flags], {"PYTHONPATH": str(ROOT), **env})


def start_code(code, *flags, **env):
    """Starts Python code, which may import the helpers."""
    return _start(
        ["-c", code, *flags], {"PYTHONPATH": f"{ROOT}/tests/helpers", **env}
    )


def shallow(recipe):
    """What to give to Python, to start a program with shallow networks."""
    program = ROOT / "tests" / "helpers" / "shallow.py"
    return [str(program), f"moco_keras.recipes.{recipe}"]


def _start(arguments, env):
    env = {**os.environ, **env}
    if env.get("TF_CPP_MIN_LOG_LEVEL") == "3":  # set for the tests
        del env["TF_CPP_MIN_LOG_LEVEL"]
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=env,
    )


def finish(process):
    """Waits for a process; returns its exit code and output."""
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    return subprocess.CompletedProcess(
        process.args, process.returncode, out, err
    )


def run(recipe, *flags, **env):
    """Runs a program to its end."""
    return finish(start(recipe, *flags, **env))


def here(command, defaults, read):
    """Trains in this process, as a program would.

    Args:
        command: its name and flags.
        defaults: its `Settings`.
        read: function from the settings to its images.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("flagfile", None, "", values)
    _flags.define(defaults, values)
    values(command)
    settings = _flags.read(type(defaults), values)
    return _pretrain.pretrain(settings, command[0], read)


def smoke(data_dir, *flags):
    """The name and flags of a run that takes seconds."""
    return (
        "textures",
        f"--flagfile={ROOT}/recipes/smoke.flags",
        f"--data_dir={data_dir}",
        *flags,
    )


def numbers(folder):
    """The variables of a run's model and optimizer, and its metrics."""
    model = keras.saving.load_model(folder / "model.keras")
    variables = [*model.variables, *model.optimizer.variables]
    metrics = json.loads((folder / "metrics.json").read_text())
    return [(v.path, v.numpy()) for v in variables], metrics
