"""What is left of a training run that resumes, and its callbacks."""

import contextlib
from typing import NamedTuple

import keras


class Position(NamedTuple):
    """The batch that comes next.

    Attributes:
        epoch: the epoch that it is of, from 0.
        batch: its number in that epoch, from 0.
    """

    epoch: int
    batch: int = 0


class Stretch(NamedTuple):
    """Batches that one call of Keras's `fit` trains on.

    Attributes:
        start: `Position` of the first.
        epochs: how many epochs are done at its end, with those before it.
        steps: batches in each of its epochs, or None where it is not known.
    """

    start: Position
    epochs: int
    steps: int | None


def stretches(start, epochs, steps):
    """Divides what is left into the rest of an epoch, and whole epochs.

    Keras's `fit` begins with a whole epoch, so what is left of one that was
    interrupted needs a call of its own, as an epoch of fewer batches.

    Args:
        start: `Position` of the first batch.
        epochs: how many epochs are to be done in the end.
        steps: batches in an epoch, or None where it is not known.

    Returns:
        A list of one or two `Stretch`es. Where nothing is left, the only one is
        empty, since callbacks hear that the run begins and ends all the same.
    """
    if not start.batch or start.epoch >= epochs:
        return [Stretch(Position(start.epoch), epochs, steps)]
    following = Position(start.epoch + 1)
    rest = Stretch(start, following.epoch, steps and steps - start.batch)
    if following.epoch == epochs:
        return [rest]
    return [rest, Stretch(following, epochs, steps)]


class ResumedCallbacks(keras.callbacks.CallbackList):
    """Callbacks to which the calls of `fit` for all stretches are one run.

    Args:
        callbacks: list of them.
        done: batches of the first epoch that were trained on before.
        verbose, kwargs: as in `keras.callbacks.CallbackList`.
    """

    def __init__(self, callbacks, done, verbose, **kwargs):
        super().__init__(
            callbacks,
            add_history=True,
            add_progbar=verbose != 0,
            verbose=verbose,
            **kwargs,
        )
        self._done = done
        self._last_logs = None

    @contextlib.contextmanager
    def one_run(self):
        """Begins it and ends it."""
        super().on_train_begin()
        yield
        super().on_train_end(self._last_logs)

    def on_train_begin(self, logs=None):
        pass  # see `one_run`

    def on_train_end(self, logs=None):
        self._last_logs = logs

    def on_train_batch_begin(self, batch, logs=None):
        super().on_train_batch_begin(self._done + batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(self._done + batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        self._done = 0


@contextlib.contextmanager
def finalized_once(model):
    """Has several calls of `fit` end the optimizer's work once, at the end.

    At the end of each, Keras's `fit` would give the weights their moving
    averages, if the optimizer keeps any (`use_ema=True`).
    """
    optimizer = model.optimizer
    optimizer.finalize_variable_values = lambda variables: None
    try:
        yield
    finally:
        del optimizer.finalize_variable_values  # that of its class remains
    optimizer.finalize_variable_values(model.trainable_weights)
