"""What `MoCo.fit` accepts: images, or ready pairs of views, checked early."""

import contextlib

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


def check_images(images):
    """Refuses what is not a batch of RGB images of eight bits a channel.

    Args:
        images: an array, tensor or `tf.TensorSpec`.

    Raises:
        ValueError: saying what is wrong and what to do.
    """
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
        remedy = (
            "Batch them, with `dataset.batch(256, drop_remainder=True)` say."
            if shape is not None and len(shape) == 3
            else "Pass an array or a `tf.data.Dataset` of such images."
        )
        received = type(images).__name__ if shape is None else f"shape={shape}"
        raise ValueError(f"{expected} Received: {received}. {remedy}")
    if shape[-1] != 3:
        remedy = {
            1: "Repeat the channel, with `np.repeat(images, 3, axis=-1)`.",
            4: "Drop the alpha channel, with `images[..., :3]`.",
        }.get(shape[-1], "Put the three colour channels last.")
        raise ValueError(
            f"{expected} Received: {shape[-1]} channels, shape={shape}. "
            f"{remedy}"
        )
    if images.dtype != "uint8":
        raise ValueError(
            f"{expected} Received: dtype={images.dtype.name}. For "
            "floats in [0, 1], pass `(255 * images).round().astype('uint8')`."
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
        received = tuple(views.shape[1:])
        if len(received) != len(expected) or any(
            None not in (a, b) and a != b
            for a, b in zip(received, expected, strict=True)
        ):
            raise ValueError(
                f"The encoder takes images of shape {expected}. Received "
                f"views of shape {received}. Build the encoder and the "
                "augmenter with the same `image_size`."
            )


def training_batches(data, batch_size, strategy):
    """Turns what `fit` was given into batches, where it is arrays.

    Arrays become a data set without an end, in a new order every pass; what
    fills no batch is dropped, as the paper's code does. Data sets and
    generators stay what they are.

    Args:
        data: as `images_of`, of arrays, or a `tf.data.Dataset`, or `TwoViews`,
            or a generator of any kind that Keras takes.
        batch_size: images in a batch; None means 32 for arrays, as in Keras.
        strategy: whose replicas share each batch.

    Returns:
        A function that returns the batches, and the number of them in a pass
        where that is known, or None. The function takes, of which data sets
        and generators of others leave out what they cannot follow,

        - seed: the integer that fixes, with the number of the pass, the order;
        - shuffle: whether that is a new one every pass, or the data's own;
        - steps_taken: how many batches were trained on before;
        - done: how many of them are of the epoch that goes on; None begins the
          next pass instead.

    Raises:
        ValueError: if the images cannot be trained on.
    """
    batched = isinstance(data, tf.data.Dataset)
    of_views = hasattr(data, "training_batches")
    if (batched or of_views) and batch_size is not None:
        raise ValueError(
            "`batch_size` must not be given with a data set, which has "
            f"its own batches. Received: batch_size={batch_size}."
        )
    if of_views:
        return data.training_batches(strategy)
    if batched:
        spec = data.element_spec
        _check(images_of(spec))
        distribution.check_batch(keras.tree.flatten(spec)[0].shape[0], strategy)

        def rest(seed, shuffle, steps_taken, done):
            return without_autotuning(data.skip(done) if done else data)

        return rest, None
    if not hasattr(data, "shape") and not isinstance(data, (tuple, list, dict)):
        return lambda **position: data, None
    images = images_of(data)
    _check(images)
    batch_size = batch_size or 32
    distribution.check_batch(batch_size, strategy)
    num_images = len(keras.tree.flatten(images)[0])
    _check_arrays(images, num_images, batch_size)
    steps = num_images // batch_size
    images = keras.tree.map_structure(np.asarray, images)

    def take(rows):
        return keras.tree.map_structure(lambda x: _take(x, rows), images)

    def batches(seed, shuffle, steps_taken, done):
        start = first_batch(steps_taken, steps, done)
        seed = seed if shuffle else None
        return distribution.spread(
            _rows(num_images, (steps, batch_size), seed, start),
            lambda parts: parts.map(take, num_parallel_calls=tf.data.AUTOTUNE),
            strategy,
        )

    return batches, steps


def first_batch(steps_taken, steps, done):
    """The number of the batch that comes next, of passes of `steps` batches.

    Args:
        steps_taken, done: see `training_batches`.
    """
    return steps_taken if done is not None else -(-steps_taken // steps) * steps


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


def _check(images):
    if not isinstance(images, tuple):
        check_images(images)


def _check_arrays(images, num_images, batch_size):
    if any(len(views) != num_images for views in keras.tree.flatten(images)):
        raise ValueError(
            "Both arrays of a pair of views must have the same length. "
            f"Received: {[len(views) for views in images]}."
        )
    check_batch_size(batch_size, num_images)


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
