"""The callbacks of every training run, and the order of all of them."""

import warnings

import keras

from moco_keras import pixel_format
from moco_keras.momentum import MomentumUpdate
from moco_keras.training.checkpoint import Checkpoint

_NOT_SHOWN = "health_"  # beginning of names: `evaluation.health.PREFIX`
# The largest pixel of a batch, as a part of the range, is rarely beyond these.
_DARK, _BRIGHT = 2 / 255, 1.25


def arrange(callbacks, momentum_update, verbose):
    """Puts the user's callbacks in order, with those that every run needs.

    `EpochWatch` comes first, because the others need the averages that it
    makes. The momentum update is next, so that the others see the key encoder
    after its step. A `Checkpoint` is last, to save what the others have done.

    Args:
        callbacks: what `fit` was given.
        momentum_update: the `MomentumUpdate` to use where none was given.
        verbose: as in `keras.Model.fit`.

    Returns:
        A list of callbacks, and the `Checkpoint` among them or None.

    Raises:
        ValueError: if there are several of a kind that must be alone.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    callbacks = list(keras.tree.flatten(callbacks or []))
    updates, checkpoints = (
        [c for c in callbacks if isinstance(c, kind)]
        for kind in (MomentumUpdate, Checkpoint)
    )
    for found in (updates, checkpoints):
        if len(found) > 1:
            raise ValueError(
                f"`callbacks` must hold one `{type(found[0]).__name__}` at "
                "most: the key encoder moves once a step, and a training run "
                f"resumes from one place. Received: {len(found)}. Leave all "
                "but one out."
            )
    placed = updates + checkpoints
    others = [c for c in callbacks if not any(c is p for p in placed)]
    updates = updates or [momentum_update]
    arranged = [EpochWatch(), *updates, *others, *checkpoints]
    bars = keras.callbacks.ProgbarLogger
    if verbose and not any(isinstance(c, bars) for c in others):
        arranged.append(ProgressBar())
    return arranged, checkpoints[0] if checkpoints else None


class ProgressBar(keras.callbacks.ProgbarLogger):
    """Keras's own, without the many numbers of a `HealthMonitor`."""

    def on_epoch_end(self, epoch, logs=None):
        shown = {
            name: value
            for name, value in (logs or {}).items()
            if not name.startswith(_NOT_SHOWN)
        }
        super().on_epoch_end(epoch, shown)


class EpochWatch(keras.callbacks.Callback):
    """Averages statistics after an epoch; looks for likely mistakes.

    Raises:
        ValueError: if layers were frozen or thawed without `compile`, or an
            epoch had no batches.
    """

    _first = True

    def on_epoch_begin(self, epoch, logs=None):
        self.model.check_frozen()  # another callback may have frozen some
        self._batches = 0

    def on_train_batch_begin(self, batch, logs=None):
        # A callback may have read the model, and averaged, in this epoch.
        self.model.statistics_differ = True

    def on_train_batch_end(self, batch, logs=None):
        self._batches += 1
        if self._first:
            self._first = False
            self._warn_of_views()

    def on_epoch_end(self, epoch, logs=None):
        if not self._batches:
            raise ValueError(
                "A data set must have batches to train on. Received one that "
                f"had none for epoch {epoch + 1}. Look at where its images "
                "come from; `drop_remainder=True` drops a batch that is not "
                "full."
            )
        self.model.average_statistics()

    def _warn_of_views(self):
        """Of mistakes that the views of the first batch show."""
        apart, largest = self.model.views_seen.numpy()
        pixels = self.model.pixels
        low, high = pixels.bounds
        part = (largest - low) / (high - low)
        takes_pixels = pixel_format.takes_pixels(self.model.query_encoder)
        if takes_pixels and (part <= _DARK or part >= _BRIGHT):
            warnings.warn(
                f"The encoder takes pixels in {pixels}, and normalizes them "
                "itself. Received a first batch of views whose largest value "
                f"is {largest:.3g}. Use an augmenter that does not rescale, or "
                "build the encoder with the `value_range` of the views.",
                stacklevel=2,
            )
        if apart == 0:
            warnings.warn(
                "The two views of an image must differ, or finding the key of "
                "the other one teaches nothing. Received a first batch of "
                "equal views. Use an augmenter that changes images at random, "
                "such as those of `moco_keras.augmentations`.",
                stacklevel=2,
            )
