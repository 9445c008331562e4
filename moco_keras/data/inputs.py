"""What `MoCo.fit` accepts: images, or ready pairs of views, checked early."""

import contextlib
import math
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from moco_keras import distribution, key_queue, random, shuffle_bn


def images_of(data):
    """Finds the images in what a data set yields.

    Args:
        data: a tensor, array or `tf.TensorSpec` of images; a tuple of (image,
            label); a dict with "image"; or a pair of views, two of rank 4.

    Returns:
        The images, or a tuple (im_q, im_k) for a pair of views.
    """
    if isinstance(data, dict):
        if "image" not in data:
            raise ValueError(
                'A data set of dicts must hold its images under "image". '
                f"Received the keys: {sorted(data)}."
            )
        return data["image"]
    if isinstance(data, (tuple, list)):
        first = images_of(data[0])
        if isinstance(first, tuple):  # ((im_q, im_k),), as Keras wraps it
            return first
        if len(data) > 1 and len(getattr(data[1], "shape", ())) == 4:
            return first, data[1]
        return first
    return data


# Code that makes images of what else was given, of arrays and of tensors.
_ROUND = "{}.round().astype('uint8')", "tf.cast(tf.round({}), tf.uint8)"
_CAST = "{}.astype('uint8')", "tf.cast({}, tf.uint8)"
_OF_ONE = (
    "(255 * {}.clip(0, 1)).round().astype('uint8')",
    "tf.cast(tf.round(255 * tf.clip_by_value({}, 0, 1)), tf.uint8)",
)
_OF_SIGN = (
    "(127.5 * ({} + 1)).round().astype('uint8')",
    "tf.cast(tf.round(127.5 * ({} + 1)), tf.uint8)",
)
_OF_16_BITS = "({} // 257).astype('uint8')", "tf.cast({} // 257, tf.uint8)"
_OF_BOOL = "255 * {}.astype('uint8')", "255 * tf.cast({}, tf.uint8)"
_REPEAT = "np.repeat({}, 3, axis=-1)", "tf.repeat({}, 3, axis=-1)"
_REPEAT_NEW = (
    "np.repeat({}[..., None], 3, axis=-1)",
    "tf.repeat({}[..., None], 3, axis=-1)",
)
_DROP = "{}[..., :3]", "{}[..., :3]"
_ONE = "{}[None]", "{}[None]"
# By kind of number: ranges of pixels, and what brings each to [0, 255].
_RANGES = {
    "bool": [((0, 1), _OF_BOOL)],
    "int": [((0, 1), _OF_BOOL), ((0, 255), _CAST), ((0, 65535), _OF_16_BITS)],
    "float": [((0, 1), _OF_ONE), ((-1, 1), _OF_SIGN), ((0, 255), _ROUND)],
}


def check_images(images, example=None, dataset="dataset"):
    """Refuses what is not a batch of RGB images of eight bits a channel.

    Args:
        images: an array, tensor or `tf.TensorSpec`.
        example: of a data set, the `element_spec` that the images are part of.
        dataset: what the user may call it.

    Raises:
        ValueError: saying what is wrong and what to do.
    """

    def pass_(code):
        array, tensor = code
        if isinstance(images, np.ndarray):
            return f"pass `{array.format('images')}`"
        first = example[0] if isinstance(example, tuple) else example
        name, image = "image", "image"
        if isinstance(first, dict):
            name, image = "example", 'example["image"]'
        of_dataset = (
            f"pass `{dataset}.map(lambda {name}, *_: {tensor.format(image)})`"
        )
        if isinstance(images, tf.TensorSpec):
            return of_dataset
        of_tensor = f"pass `{tensor.format('images')}`"
        if _is_known(images):
            return of_tensor
        return f"{of_tensor}, or, for a data set, {of_dataset}"

    shape = getattr(images, "shape", None)
    expected = "Images must be a uint8 batch of shape (N, height, width, 3)."
    if isinstance(images, (tf.RaggedTensorSpec, tf.RaggedTensor)) or (
        isinstance(images, np.ndarray) and images.dtype.hasobject
    ):
        raise ValueError(
            f"{expected} Received images of unequal sizes. Resize them to one "
            "size, or cut two views from each before batching, with "
            "`moco_keras.data.two_views`."
        )
    if shape is None or len(shape) != 4:
        received = type(images).__name__ if shape is None else f"shape={shape}"
        if isinstance(images, dict):
            remedy = (
                f"For a data set, pass `{dataset}.map(lambda example, *_: "
                'example["image"])`.'
            )
        elif shape is None or len(shape) != 3:
            remedy = "Pass an array or a `tf.data.Dataset` of such images."
        elif shape[-1] not in (1, 3, 4):
            remedy = f"Of images in gray, {pass_(_REPEAT_NEW)}."
        elif isinstance(images, tf.TensorSpec):
            remedy = (
                f"Batch them: pass `{dataset}.batch(256, drop_remainder=True)`."
            )
        else:
            remedy = f"Of a single image, {pass_(_ONE)}."
        raise ValueError(f"{expected} Received: {received}. {remedy}")
    if shape[-1] != 3:
        remedy = {
            1: f"Repeat the channel: {pass_(_REPEAT)}.",
            4: f"Drop the alpha channel: {pass_(_DROP)}.",
        }.get(shape[-1], "Put the three color channels last.")
        raise ValueError(
            f"{expected} Received: {shape[-1]} channels, shape={shape}. "
            f"{remedy}"
        )
    dtype = keras.backend.standardize_dtype(images.dtype)
    if dtype != "uint8":
        kind = next((k for k in _RANGES if k in dtype), None)
        ranges = _RANGES.get(kind, [])
        received = f"dtype={dtype}"
        if _is_known(images) and kind and len(images):
            values = np.asarray(images)
            low, high = values.min().item(), values.max().item()
            received += f", pixels from {low:g} to {high:g}"
            # Resizing may go a little beyond a range.
            off = 0.25 if kind == "float" else 0
            ranges = [
                ((least, most), code)
                for (least, most), code in ranges
                if least - off <= low and high <= most + off
            ][:1]
        remedies = [
            f"If pixels are in [{low}, {high}], {pass_(code)}."
            for (low, high), code in ranges
        ] or ["Undo what has moved their pixels out of [0, 255]."]
        raise ValueError(
            f"{expected} Received: {received}. {' '.join(remedies)}"
        )


def check_pair(im_q, im_k):
    """Refuses images with masks, which look like a pair of views.

    Args:
        im_q, im_k: arrays, tensors or `tf.TensorSpec`s of rank 4.

    Raises:
        ValueError: if they are not both of floats.
    """
    dtypes = [tf.as_dtype(views.dtype) for views in (im_q, im_k)]
    if not all(dtype.is_floating for dtype in dtypes):
        raise ValueError(
            "A pair of views must be two float batches of shape (N, height, "
            "width, 3), pixels in [0, 255]. Received a pair of "
            f"{dtypes[0].name} {tuple(im_q.shape)} and {dtypes[1].name} "
            f"{tuple(im_k.shape)}. If the second are masks or targets, leave "
            "them out, with `dataset.map(lambda image, mask: image)` for "
            "example; if both are views, cast them to float32."
        )


def _is_known(images):
    """Whether there are values, and not only a description of them."""
    is_tensor = isinstance(images, tf.Tensor)
    return isinstance(images, np.ndarray) or (
        is_tensor and not tf.is_symbolic_tensor(images)
    )


def check_size(images, encoder, name):
    """Refuses images that are not of an encoder's size.

    Args:
        images: an array or tensor (N, H, W, 3).
        encoder: `keras.Model` of images.
        name: what users know the images by.

    Raises:
        ValueError: saying both shapes and what to do.
    """
    expected = tuple(encoder.input_shape[1:])
    if not _fits(images, expected):
        raise ValueError(
            f"{name} must hold images of the encoder's size, {expected}. "
            f"Received: shape={tuple(images.shape)}. Bring them to it: `np."
            f"asarray(augmentations.evaluation({expected[0]})(images)).round()"
            ".astype('uint8')`."
        )


def _fits(images, expected):
    """Whether the shape of a batch is what a model of such images takes."""
    received = tuple(images.shape[1:])
    return len(received) == len(expected) and all(
        None in (a, b) or a == b
        for a, b in zip(received, expected, strict=True)
    )


def check_views(im_q, im_k, encoder):
    """Refuses views that the encoder cannot take.

    Args:
        im_q, im_k: arrays, tensors or `tf.TensorSpec`s of rank 4.
        encoder: the query encoder.

    Raises:
        ValueError: saying both shapes and what to do.
    """
    expected = tuple(encoder.input_shape[1:])
    for views in (im_q, im_k):
        if not _fits(views, expected):
            raise ValueError(
                f"The encoder takes images of shape {expected}. Received "
                f"views of shape {tuple(views.shape[1:])}. Build the encoder "
                "and the augmenter with the same `image_size`."
            )


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
            - done: how many of them are of the epoch that is to go on.
        steps: number of batches in a pass, or None where it is not known.
        batch_size, num_images: in a batch and in a pass, or None.
    """

    read: Callable
    steps: int | None = None
    batch_size: int | None = None
    num_images: int | None = None


def training_batches(data, batch_size, strategy, steps_per_epoch=None):
    """Turns what `fit` was given into batches, where it is arrays.

    Arrays become a data set without an end, in a new order every pass; what
    fills no batch is dropped, as the paper's code does. Data sets and
    generators stay what they are; a data set whose epochs are of a number of
    batches that the user chose begins again where it ends.

    Args:
        data: as `images_of`, of arrays, or a `tf.data.Dataset`, or `TwoViews`,
            or a generator of any kind that Keras takes.
        batch_size: images in a batch; None means 32 for arrays, as in Keras.
        strategy: whose replicas share each batch.
        steps_per_epoch: batches in an epoch where the user has chosen, or None.

    Returns:
        `Batches`.

    Raises:
        ValueError: if the images cannot be trained on.
    """
    _check_own_batches(data, batch_size)
    if hasattr(data, "training_batches"):
        return data.training_batches(strategy)
    if isinstance(data, tf.data.Dataset):
        return _of_dataset(data, strategy, steps_per_epoch=steps_per_epoch)
    if _is_generator(data):
        return Batches(lambda *position: data)
    images = images_of(data)
    _check(images)
    batch_size = batch_size or 32
    distribution.check_batch(batch_size, strategy)
    num_images = _number_of(images)
    check_batch_size(batch_size, num_images)
    steps = num_images // batch_size
    take = _taker(images)

    def read(seed, shuffle, began, taken, done):
        seed = seed if shuffle else None
        start = first_batch(began, taken, steps)
        return distribution.spread(
            _rows(num_images, (steps, batch_size), seed, start),
            lambda parts: parts.map(take, num_parallel_calls=tf.data.AUTOTUNE),
            strategy,
        )

    return Batches(read, steps, batch_size, num_images)


def _of_dataset(dataset, strategy, **steps):
    """`Batches` of a data set; `steps` is the user's number, by its name."""
    ((name, steps_chosen),) = steps.items()
    spec = dataset.element_spec
    _check(images_of(spec), spec)
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
        return without_autotuning(passes.skip(skipped) if skipped else passes)

    return Batches(read, steps, batch_size)


def evaluation_batches(data, batch_size, strategy, **steps):
    """Turns what `evaluate` was given into batches, where it is arrays.

    Args:
        data, batch_size, strategy: as in `training_batches`. On several
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
        batches = data.training_batches(strategy)
        dataset = batches.read(seed=0, shuffle=False, began=0, taken=0, done=0)
        return dataset, chosen or batches.steps
    if isinstance(data, tf.data.Dataset):
        _of_dataset(data, strategy, **steps)  # checks it
        return without_autotuning(data), chosen
    if _is_generator(data):
        return data, chosen
    images = images_of(data)
    _check(images)
    num_images, take = _number_of(images), _taker(images)
    if batch_size is None:
        batch_size = 32
    distribution.check_batch(batch_size, strategy)
    replicas = strategy.num_replicas_in_sync
    batch_size = min(batch_size, num_images - num_images % replicas)
    check_batch_size(batch_size or replicas, num_images)
    rows = tf.data.Dataset.range(num_images).batch(
        batch_size, drop_remainder=replicas > 1
    )
    dataset = distribution.spread(
        without_autotuning(rows),
        lambda parts: parts.map(take, num_parallel_calls=tf.data.AUTOTUNE),
        strategy,
    )
    # Several replicas would take another step, of nothing, to see the end.
    return dataset, chosen or len(rows)


def single_batch(data, strategy):
    """One batch of arrays, as `train_on_batch` takes it, for all replicas.

    Raises:
        ValueError: if it is not one, or the replicas cannot share it.
    """
    images = images_of(data)
    _check(images)
    size = _number_of(images)
    distribution.check_batch(size, strategy)
    return distribution.shared(images, strategy)


def split(data, share):
    """Splits arrays: all but the last, and the last `share` of the images.

    Raises:
        ValueError: if they are no arrays, or nothing would be left of one part.
    """
    if _has_own_batches(data) or _is_generator(data):
        raise ValueError(
            "`validation_split` must be given with arrays, which have an end "
            f"to split off. Received: {type(data).__name__}. Split it with "
            "`take` and `skip`, and pass a part as `validation_data`."
        )
    images = images_of(data)
    _check(images)
    num_images = _number_of(images)
    first = math.floor(num_images * (1.0 - share))
    if not 0 < first < num_images:
        raise ValueError(
            "`validation_split` must leave images to train on and to validate "
            f"on. Received: validation_split={share}, {num_images} images."
        )
    return tuple(
        keras.tree.map_structure(lambda x, part=part: x[part], images)
        for part in (slice(first), slice(first, None))
    )


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


def first_batch(began, taken, steps):
    """The number of the batch that comes next, of passes of `steps` batches.

    A training begins with a pass of its own.

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


@contextlib.contextmanager
def loss_of_files():
    """Says readably that a file of images is gone, while they are read.

    Raises:
        FileNotFoundError: in place of TensorFlow's error.
    """
    try:
        yield
    except tf.errors.NotFoundError as error:
        lines = error.message.splitlines()
        line = next((x for x in lines if "No such file" in x), None)
        if line is None:
            raise  # something else was not found
        raise FileNotFoundError(
            "Images must stay where they were when the training began. "
            f"Received: {line.split(': ')[-1]}. Bring them back, and start "
            "again."
        ) from error


# By the operation that fails.
_SIZES = {
    key_queue.TOO_MANY_KEYS: "`queue_size` must hold the keys of a whole step. "
    "Received: {}. Raise `queue_size` or use smaller batches.",
    shuffle_bn.INDIVISIBLE: "`splits` of batch norm must divide every batch. "
    "Received: {}. Leave a smaller last batch out, with "
    "`dataset.batch(256, drop_remainder=True)` for example.",
}


@contextlib.contextmanager
def batches_that_do_not_fit():
    """Says readably what is wrong with a batch whose size nobody knew before.

    Raises:
        ValueError: in place of TensorFlow's error.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        lines = error.message.splitlines()
        received = next((line for line in lines if "but got" in line), None)
        for operation, message in _SIZES.items():
            if operation in error.message and received:
                raise ValueError(message.format(received)) from error
        raise


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


def _check(images, example=None):
    if isinstance(images, tuple):
        check_pair(*images)
    else:
        check_images(images, example)


def check_batch_size(batch_size, num_images):
    """Refuses batches that the images do not fill."""
    if batch_size > num_images:
        raise ValueError(
            "`batch_size` must be at most the number of images. Received: "
            f"batch_size={batch_size}, {num_images} images."
        )


def _rows(num_images, shape, seed, start):
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
    return without_autotuning(passes.unbatch().skip(start % steps))


def _take(array, rows):
    """Rows of an array, which TensorFlow never copies as a whole."""
    taken = tf.numpy_function(lambda rows: array[rows], [rows], array.dtype)
    return tf.ensure_shape(taken, (*rows.shape, *array.shape[1:]))
