"""How long a training step takes here, measured on a few of them."""

import math
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
    """Notes when steps end, and stops after so many seconds if it is told."""

    def __init__(self, most=None):
        super().__init__()
        self.ends, self._most = [], most

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())
        took = self.ends[-1] - self.ends[0]
        if self._most is not None and took > self._most:
            self.model.stop_training = True


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
    first = _timed(fit, 1)
    # Its images may have been read while it was compiled. So it says how many
    # steps to take, at most: workers that do not stop together wait for ever.
    count = of_chief(math.ceil(seconds / first.step - 0.5), strategy)
    if count < 1:
        return first
    most = None if distribution.is_multi_worker(strategy) else seconds
    return Speed(first.start, _timed(fit, count, most).step)


def of_chief(number, strategy):
    """An integer, that of the chief on all workers."""
    number = {"number": tf.constant(number, "int32")}
    return int(distribution.broadcast(number, strategy)["number"])


def _timed(fit, count, most=None):
    """The `Speed` of the first step and of so many after it."""
    clock, began = _Clock(most), time.perf_counter()
    fit(epochs=1, steps_per_epoch=1 + count, callbacks=[clock], verbose=0)
    first, *_, last = clock.ends
    return Speed(first - began, (last - first) / (len(clock.ends) - 1))
