"""Trains small models with TensorFlow's deterministic operations.

    python tests/helpers/deterministic.py FOLDER KINDS DEPTH [STEPS]

KINDS are keys of `KINDS`, separated by commas. DEPTH is "whole", or "shallow"
for shallow networks. Training resumes from what FOLDER holds. With STEPS,
SIGTERM stops each model after that many; without, the trained arrays are saved.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import shallow
import tensorflow as tf
from programs import ROOT

from moco_keras import (
    Checkpoint,
    MoCo,
    augmentations,
    build_encoder,
    optimizers,
)

BATCH, BATCHES, EPOCHS = 16, 4, 2
STOP = 6  # of the eight steps, within the second epoch
# Views, head and stem, by name; only the second stem has a max-pooling.
KINDS = {
    "cifar": (augmentations.cifar, "linear", "cifar"),
    "moco_v2": (augmentations.moco_v2, "mlp", "imagenet"),
}


def train(kind, folder, stop=None):
    """Trains or resumes; returns the trained arrays."""
    keras.utils.set_random_seed(1)
    views, head, stem = KINDS[kind]
    model = MoCo(
        build_encoder(
            "resnet18", 32, 16, head=head, stem=stem, width=4, bn_splits=2
        ),
        views(32),
        queue_size=100,
    )
    model.compile(optimizers.SGD(0.03, momentum=0.9, l2=5e-4))

    def stop_in_time(batch, logs):
        if int(model.steps) == stop:
            signal.raise_signal(signal.SIGTERM)

    rng = np.random.default_rng(0)
    model.fit(
        rng.integers(0, 256, (BATCHES * BATCH, 32, 32, 3), "uint8"),
        batch_size=BATCH,
        epochs=EPOCHS,
        callbacks=[
            keras.callbacks.LambdaCallback(on_train_batch_end=stop_in_time),
            Checkpoint(folder),
        ],
        verbose=0,
    )
    assert int(model.steps) == EPOCHS * BATCHES
    variables = (*model.variables, *model.optimizer.variables)
    return [keras.ops.convert_to_numpy(v) for v in variables]


def differences(folder, kinds, depth):
    """Trains twice, and once in two processes; compares the trained arrays.

    Returns:
        For each kind: the number of arrays, and how many differ from the first
        run's in the second run, and in the run that was stopped and resumed.
    """
    finish(
        start(folder / "first", kinds, depth),
        start(folder / "second", kinds, depth),
        start(folder / "resumed", kinds, depth, STOP),
    )
    assert not list(folder.glob("resumed/*.npz"))
    finish(start(folder / "resumed", kinds, depth))
    results = {}
    for kind in kinds:
        first, second, resumed = (
            list(np.load(folder / name / f"{kind}.npz").values())
            for name in ("first", "second", "resumed")
        )
        differ = [count_different(first, x) for x in (second, resumed)]
        results[kind] = len(first), *differ
    return results


def start(folder, kinds, depth, *stop):
    command = [sys.executable, __file__, folder, ",".join(kinds), depth, *stop]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(map(str, command), env=env)


def finish(*processes):
    codes = [process.wait(timeout=300) for process in processes]
    assert codes == [0] * len(codes), codes


def count_different(arrays, others):
    pairs = zip(arrays, others, strict=True)
    return sum(not np.array_equal(a, b) for a, b in pairs)


def main(folder, kinds, depth, stop=None):
    tf.config.experimental.enable_op_determinism()
    networks = {"whole": contextlib.nullcontext, "shallow": shallow.networks}
    with networks[depth]():
        for kind in kinds:
            if stop:
                with pytest.raises(SystemExit, match="143"):
                    train(kind, folder / kind, stop)
            else:
                trained = train(kind, folder / kind)
                np.savez(folder / f"{kind}.npz", *trained)


if __name__ == "__main__":
    folder, kinds, depth, *stop = sys.argv[1:]
    main(Path(folder), kinds.split(","), depth, *map(int, stop))
