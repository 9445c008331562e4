"""How long a training step takes here, measured on a few of them."""

import math
import time
from typing import NamedTuple

import keras
import tensorflow as tf

from moco_keras import distribution

_LONGER = 8  # times, that a trial may be longer than the one before


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
        seconds: about how long to measure; of a step that takes twice as long
            one is enough.
        strategy: that trains.

    Returns:
        A `Speed`.
    """
    first = speed = _timed(fit, 1)
    count = 1
    # The first steps may be faster than all others: their images were read
    # while they waited. So each trial is at most a few times as long as before.
    while True:
        wanted = math.ceil(seconds / speed.step - 0.5)
        more = of_chief(min(wanted, _LONGER * count), strategy)
        if more < 2 * count:
            return Speed(first.start, speed.step)
        count = more
        speed = _timed(fit, count)


def of_chief(number, strategy):
    """An integer, that of the chief on all workers."""
    number = {"number": tf.constant(number, "int32")}
    return int(distribution.broadcast(number, strategy)["number"])


def _timed(fit, count):
    """The `Speed` of the first step and of so many after it."""
    clock, began = _Clock(), time.perf_counter()
    fit(epochs=1, steps_per_epoch=1 + count, callbacks=[clock], verbose=0)
    first, *_, last = clock.ends
    return Speed(first - began, (last - first) / count)
