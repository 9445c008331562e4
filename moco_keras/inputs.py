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


# Code that makes images of what else was given, of arrays and of tensors.
_ROUND = "{}.round().astype('uint8')", "tf.cast(tf.round({}), tf.uint8)"
_CAST = "{}.astype('uint8')", "tf.cast({}, tf.uint8)"
_OF_ONE = (
    "(255 * {}).round().astype('uint8')",
    "tf.cast(tf.round(255 * {}), tf.uint8)",
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
    "int": [((0, 255), _CAST), ((0, 65535), _OF_16_BITS)],
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
            ranges = [r for r in ranges if r[0][0] <= low and high <= r[0][1]]
            ranges = ranges[:1]
        remedies = [
            f"If pixels are in [{low}, {high}], {pass_(code)}."
            for (low, high), code in ranges
        ] or ["Undo what has moved their pixels out of [0, 255]."]
        raise ValueError(
            f"{expected} Received: {received}. {' '.join(remedies)}"
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
        _check(images_of(spec), spec)
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


def _check(images, example=None):
    if not isinstance(images, tuple):
        check_images(images, example)


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
