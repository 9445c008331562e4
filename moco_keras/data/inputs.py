"""What `MoCo.fit` accepts: images, or ready pairs of views, checked early."""

import math

import keras
import numpy as np
import tensorflow as tf

from moco_keras import distribution, random
from moco_keras.data import batching, checks


def training_batches(data, batch_size, strategy, pixels, steps_per_epoch=None):
    """Turns what `fit` was given into batches, where it is arrays.

    Arrays become a data set without an end, in a new order every pass; what
    fills no batch is dropped, as the paper's code does. Data sets and
    generators stay what they are; a data set whose epochs are of a number of
    batches that the user chose begins again where it ends.

    Args:
        data: arrays as `unpack_images` takes them, a `tf.data.Dataset`,
            `TwoViews`, or a generator of any kind that Keras takes.
        batch_size: images in a batch; None means 32 for arrays, as in Keras.
        strategy: whose replicas share each batch.
        pixels: the `PixelFormat` of the encoder.
        steps_per_epoch: batches in an epoch where the user has chosen, or None.

    Returns:
        `batching.Batches`.

    Raises:
        ValueError: if the images cannot be trained on.
    """
    _check_own_batches(data, batch_size)
    if hasattr(data, "training_batches"):
        return data.training_batches(strategy, pixels)
    if isinstance(data, tf.data.Dataset):
        steps = {"steps_per_epoch": steps_per_epoch}
        return _of_dataset(data, strategy, pixels, **steps)
    if _is_generator(data):
        return batching.Batches(lambda *position: data)
    images = checks.unpack_images(data)
    checks.check(images, pixels)
    batch_size = batch_size or 32
    distribution.check_batch(batch_size, strategy)
    num_images = _number_of(images)
    checks.check_batch_size(batch_size, num_images)
    steps = num_images // batch_size
    take = _taker(images)

    def read(seed, shuffle, began, taken, done):
        seed = seed if shuffle else None
        start = batching.first_batch(began, taken, steps)
        return distribution.distribute_batches(
            _batch_rows(num_images, (steps, batch_size), seed, start),
            lambda parts: parts.map(take, num_parallel_calls=tf.data.AUTOTUNE),
            strategy,
        )

    return batching.Batches(read, steps, batch_size, num_images, _dtype(images))


def _of_dataset(dataset, strategy, pixels, **steps):
    """`Batches` of a data set; `steps` is the user's number, by its name."""
    ((name, steps_chosen),) = steps.items()
    spec = dataset.element_spec
    images = checks.unpack_images(spec)
    checks.check(images, pixels, spec)
    batch_size = keras.tree.flatten(spec)[0].shape[0]
    distribution.check_batch(batch_size, strategy)
    steps = int(dataset.cardinality())
    if steps == 0:
        raise ValueError(
            "A data set must have batches. Received one that is empty. "
            "`drop_remainder=True` drops a batch that is not full: use smaller "
            "batches, or look at where the images come from."
        )
    if steps == tf.data.INFINITE_CARDINALITY and not steps_chosen:
        raise ValueError(
            f"`{name}` must be given with a data set that has no end. "
            f"Received: {name}=None. Give a number of batches, or remove "
            "`.repeat()`."
        )
    steps = steps if steps > 0 else None

    def read(seed, shuffle, began, taken, done):
        passes, skipped = dataset, done
        if steps_chosen:
            passes = dataset.repeat()
            skipped = taken % steps if steps else taken
        return batching.without_autotuning(
            passes.skip(skipped) if skipped else passes
        )

    return batching.Batches(read, steps, batch_size, image_dtype=_dtype(images))


def evaluation_batches(data, batch_size, strategy, pixels, **steps):
    """Turns what `evaluate` was given into batches, where it is arrays.

    Args:
        data, batch_size, strategy, pixels: as in `training_batches`. On several
            replicas the last batch of arrays is dropped when it is not full,
            for no replica may be left without images.
        steps: batches to evaluate, by the name that the user knows it by, or
            None.

    Returns:
        What Keras's `evaluate` takes, and the number of batches, or None.

    Raises:
        ValueError: if the images cannot be evaluated.
    """
    (chosen,) = steps.values()
    _check_own_batches(data, batch_size)
    if hasattr(data, "training_batches"):
        batches = data.training_batches(strategy, pixels)
        dataset = batches.read(seed=0, shuffle=False, began=0, taken=0, done=0)
        return dataset, chosen or batches.steps
    if isinstance(data, tf.data.Dataset):
        _of_dataset(data, strategy, pixels, **steps)  # checks it
        return batching.without_autotuning(data), chosen
    if _is_generator(data):
        return data, chosen
    images = checks.unpack_images(data)
    checks.check(images, pixels)
    num_images, take = _number_of(images), _taker(images)
    if batch_size is None:
        batch_size = 32
    distribution.check_batch(batch_size, strategy)
    replicas = strategy.num_replicas_in_sync
    batch_size = min(batch_size, num_images - num_images % replicas)
    checks.check_batch_size(batch_size or replicas, num_images)
    rows = tf.data.Dataset.range(num_images).batch(
        batch_size, drop_remainder=replicas > 1
    )
    dataset = distribution.distribute_batches(
        batching.without_autotuning(rows),
        lambda parts: parts.map(take, num_parallel_calls=tf.data.AUTOTUNE),
        strategy,
    )
    # Several replicas would take another step, of nothing, to see the end.
    return dataset, chosen or len(rows)


def single_batch(data, strategy, pixels):
    """One batch of arrays, as `train_on_batch` takes it, for all replicas.

    Raises:
        ValueError: if it is not one, or the replicas cannot share it.
    """
    images = checks.unpack_images(data)
    checks.check(images, pixels)
    size = _number_of(images)
    distribution.check_batch(size, strategy)
    return distribution.distribute_batch(images, strategy)


def split(data, fraction, pixels):
    """Splits arrays: all but the last, and the last `fraction` of the images.

    Raises:
        ValueError: if they are not arrays, or one part would be empty.
    """
    if _has_own_batches(data) or _is_generator(data):
        raise ValueError(
            "`validation_split` must be given with arrays, which have an end "
            f"to split off. Received: {type(data).__name__}. Split it with "
            "`take` and `skip`, and pass a part as `validation_data`."
        )
    images = checks.unpack_images(data)
    checks.check(images, pixels)
    num_images = _number_of(images)
    first = math.floor(num_images * (1.0 - fraction))
    if not 0 < first < num_images:
        raise ValueError(
            "`validation_split` must leave images to train on and to validate "
            f"on. Received: validation_split={fraction}, {num_images} images."
        )
    return tuple(
        keras.tree.map_structure(lambda x, part=part: x[part], images)
        for part in (slice(first), slice(first, None))
    )


def _dtype(images):
    """The type of images, a name; None for pairs of views."""
    if isinstance(images, tuple):
        return None
    return keras.backend.standardize_dtype(images.dtype)


def _is_generator(data):
    return not hasattr(data, "shape") and not isinstance(
        data, (tuple, list, dict, type(None))
    )


def size_for(data, batch_size):
    """The batch size for arrays; None for what has batches of its own."""
    return None if _has_own_batches(data) else batch_size


def _has_own_batches(data):
    return isinstance(data, tf.data.Dataset) or hasattr(
        data, "training_batches"
    )


def _check_own_batches(data, batch_size):
    if _has_own_batches(data) and batch_size is not None:
        raise ValueError(
            "`batch_size` must not be given with a data set, which has "
            f"its own batches. Received: batch_size={batch_size}."
        )


def _number_of(images):
    counts = [len(views) for views in keras.tree.flatten(images)]
    if len(set(counts)) > 1:
        raise ValueError(
            "Both arrays of a pair of views must have the same length. "
            f"Received: {counts}."
        )
    return counts[0]


def _taker(images):
    """A function from rows to these images."""
    images = keras.tree.map_structure(np.asarray, images)
    return lambda rows: keras.tree.map_structure(
        lambda x: _take(x, rows), images
    )


def _batch_rows(num_images, shape, seed, start):
    """The rows of each batch, from batch `start`, without an end.

    Taking a batch at once is far faster than batching single images.
    """
    steps, batch_size = shape

    def rows_of_pass(number):
        rows = tf.range(num_images, dtype="int64")
        if seed is not None:
            # At once: `Dataset.shuffle` takes a second for a million.
            key = random.key(seed, "order", number)
            rows = random.permutation(key, num_images)
        return tf.reshape(rows[: steps * batch_size], shape)

    passes = tf.data.Dataset.counter(start // steps).map(rows_of_pass)
    return batching.without_autotuning(passes.unbatch().skip(start % steps))


def _take(array, rows):
    """Rows of an array, which TensorFlow never copies as a whole."""
    taken = tf.numpy_function(lambda rows: array[rows], [rows], array.dtype)
    return tf.ensure_shape(taken, (*rows.shape, *array.shape[1:]))
