"""How long a training step takes here, measured on a few of them."""

import time
from typing import NamedTuple

import keras
import tensorflow as tf

from moco_keras import distribution


class Speed(NamedTuple):
    """What was measured, in seconds.

    Attributes:
        start: from the call of `fit` to the end of the first step, which is
            compiled.
        step: of each later step, with its reading.
    """

    start: float
    step: float


class _Clock(keras.callbacks.Callback):
    """Notes when steps end."""

    def __init__(self):
        super().__init__()
        self.ends = []

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())


def measure(fit, seconds, strategy):
    """Trains for some steps, as many on each worker.

    Args:
        fit: `fit` of a compiled model, which needs only the other arguments.
        seconds: about how long to measure; a step that takes longer is measured
            alone.
        strategy: that trains.

    Returns:
        A `Speed`.
    """
    first = _timed(fit, 1)
    count = of_chief(round(seconds / first.step), strategy)
    if count < 2:
        return first
    return Speed(first.start, _timed(fit, count).step)


def of_chief(number, strategy):
    """An integer, that of the chief on all workers."""
    number = {"number": tf.constant(number, "int32")}
    return int(distribution.broadcast(number, strategy)["number"])


def _timed(fit, count):
    """The `Speed` of the first step and of so many after it."""
    clock, began = _Clock(), time.perf_counter()
    fit(epochs=1, steps_per_epoch=1 + count, callbacks=[clock], verbose=0)
    first, last = clock.ends[0], clock.ends[-1]
    return Speed(first - began, (last - first) / count)
