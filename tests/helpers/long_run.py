"""Trains a tiny model for a long time, and watches memory and speed.

    python tests/helpers/long_run.py

Prints a line of JSON for every thousand steps. After the first thousand, memory
must not grow by more than 2 %, and the time of a step by more than 10 %.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

import moco_keras
from moco_keras import augmentations, optimizers


class Watch(keras.callbacks.Callback):
    """Records the memory and the median time of a step in every epoch."""

    def __init__(self):
        self.lines = []

    def on_epoch_begin(self, epoch, logs=None):
        self.times = [time.perf_counter()]

    def on_train_batch_end(self, batch, logs=None):
        self.times.append(time.perf_counter())

    def on_epoch_end(self, epoch, logs=None):
        seconds = statistics.median(np.diff(self.times))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        line = {
            "epoch": epoch + 1,
            "memory_mib": pages * resource.getpagesize() / 2**20,
            "step_ms": round(1000 * seconds, 3),
        }
        print(json.dumps(line), flush=True)
        self.lines.append(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--thousands", type=int, default=20)
    thousands = parser.parse_args().thousands
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, use_bias=False)(inputs)
    x = moco_keras.SplitBatchNormalization(2, activation="relu")(x)
    encoder = moco_keras.build_encoder(keras.Model(inputs, x), 8, 16)
    model = moco_keras.MoCo(encoder, augmentations.cifar(8), queue_size=512)
    model.compile(optimizer=optimizers.SGD(0.01))
    images = np.random.default_rng(0).integers(0, 256, (960, 8, 8, 3))
    images = images.astype("uint8")
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        model.fit(
            images,
            batch_size=16,
            epochs=thousands,
            steps_per_epoch=1000,
            verbose=0,
            callbacks=[
                moco_keras.callbacks.KNNMonitor(
                    (images[:300], np.arange(300) % 10),
                    (images[300:400], np.arange(100) % 10),
                    k=20,
                ),
                watch,
                moco_keras.Checkpoint(Path(folder), "500 steps"),
            ],
        )
    first, *others = watch.lines
    memory = max(line["memory_mib"] for line in others) / first["memory_mib"]
    half = len(others) // 2
    early, late = (
        statistics.median(line["step_ms"] for line in part)
        for part in (others[:half], others[half:])
    )
    report = {"memory": round(memory, 4), "step": round(late / early, 4)}
    print(json.dumps(report))
    assert memory < 1.02 and late / early < 1.1, report


if __name__ == "__main__":
    main()
