"""Batches of a training run, from any of them on."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf


class Batches(NamedTuple):
    """What `fit` was given, as batches.

    Attributes:
        read: function that returns them. It takes the following, which
            generators ignore:

            - seed: the integer that fixes, with the number of the pass, the
              order;
            - shuffle: whether that is a new one every pass, or the data's own;
            - began: how many steps the model had taken when the training began;
            - taken: how many it has taken since;
            - done: how many of them are of the epoch that resumes.
        steps: number of batches in a pass, or None where it is not known.
        batch_size, num_images: in a batch and in a pass, or None.
        image_dtype: of the images; None for ready views, and of a generator.
    """

    read: Callable
    steps: int | None = None
    batch_size: int | None = None
    num_images: int | None = None
    image_dtype: str | None = None


def first_batch(began, taken, steps):
    """The number of the batch that comes next, of passes of `steps` batches.

    A training run begins with a new pass over the data.

    Args:
        began, taken: see `Batches`.
    """
    return -(-began // steps) * steps + taken


def has_ended(batches):
    """Whether a data set of unknown length has no more batches."""
    return (
        isinstance(batches, tf.data.Dataset)
        and batches.cardinality() == tf.data.UNKNOWN_CARDINALITY
        and next(iter(batches.take(1)), None) is None
    )


def without_autotuning(dataset):
    """Turns tf.data's tuner off where the user has not decided about it.

    When Keras drops an iterator, as it does after every epoch, TensorFlow often
    waits for the tuner's thread to wake by itself: up to as long again as the
    epoch took, and up to a minute. Without it `tf.data.AUTOTUNE` means as many
    parallel calls as there are cores, which leaves little to tune.

    Args:
        dataset: a `tf.data.Dataset`.

    Returns:
        The same elements.
    """
    if dataset.options().autotune.enabled is not None:
        return dataset
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
