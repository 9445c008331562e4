"""Random views that are cut where images are read, for files of any size."""

import inspect

import keras
import tensorflow as tf
from keras import ops

from moco_keras import (
    arguments,
    distribution,
    keras_private,
    pixel_format,
    random,
)
from moco_keras.data import batching, checks, damaged


def two_views(images, augmenter, batch_size, *, value_range=None):
    """Cuts two random views from each image, for images of unequal sizes.

    Args:
        images: an `ImageStream` of `data.read`, or a `tf.data.Dataset` of
            single images, (H, W, C), alone, as (image, label) or as {"image",
            "label"}.
        augmenter: a pipeline of `augmentations`, or another Keras layer that
            holds its random layers, or a function without any.
        batch_size: views in a batch; the last batch is dropped if not full.
        value_range: of the images in a data set, as in `build_encoder`.

    Returns:
        What `MoCo.fit` takes. For a stream, `TwoViews`: images in a new order
        every pass, and views, both functions of the model's seed and the
        number of the pass. For a data set, a data set of pairs (im_q, im_k),
        float32 (N, H, W, C) each, in its order; the augmenter draws a key for
        each pass, and the views are functions of the key and of their image's
        number.

    Raises:
        ValueError: if the images are not as above, or the augmenter uses random
            layers that are not its own.
    """
    batch_size = arguments.whole(batch_size=batch_size)
    if not isinstance(images, tf.data.Dataset):
        return TwoViews(images, augmenter, batch_size)
    if value_range is not None:
        value_range = arguments.value_range(value_range)
    example = images.batch(1).element_spec
    pixels = pixel_format.PixelFormat(None, value_range)
    checks.check_images(checks.unpack_images(example), example, pixels=pixels)

    states = random_states(augmenter)

    def with_keys(keys, numbered):
        number, example = numbered
        keys = tf.cond(number == 0, lambda: _draw(states), lambda: keys)
        return keys, (keys, number, checks.unpack_images(example))

    def views(keys, number, image):
        return random_views(augmenter, tf.unstack(keys), number, image)

    return batching.without_autotuning(
        images.enumerate()
        # In order, because what follows runs in parallel, in any order.
        .scan(tf.zeros((len(states), 2), "int64"), with_keys)
        .map(views, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(batch_size, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def random_states(augmenter):
    """The variables that hold an augmenter's random states."""
    return keras_private.random_states(getattr(augmenter, "variables", []))


def _draw(states):
    """The next key of each `SeedGenerator`, int64 (layers, 2)."""
    keys = [tf.cast(v.value, "int64") for v in states]
    for v in states:
        v.assign(ops.add(v, [0, 1]))  # as `SeedGenerator.next`
    # There may be none.
    return tf.reshape(tf.concat([tf.zeros(0, "int64"), *keys], 0), (-1, 2))


def random_views(augmenter, keys, number, images, count=2):
    """Views that depend on a key for each random layer, and on a number.

    Args:
        augmenter: see `two_views`.
        keys: int64 (2,) for each of its random states.
        number: int scalar, that of the image or of the batch.
        images: an image, or a batch of one size.
        count: how many views to cut.

    Returns:
        A tuple of views.
    """
    states = random_states(augmenter)
    own = [
        (v, random.fold_in(key, number))
        for v, key in zip(states, keys, strict=True)
    ]
    with keras.StatelessScope(own) as scope:
        views = tuple(augment(augmenter, images) for _ in range(count))
    if scope.state_mapping.keys() - {id(v) for v in states}:
        raise ValueError(
            "An `augmenter` of views that are cut in a data set must be a "
            "Keras layer that holds its random layers, or all images would get "
            f"the same numbers. Received: {augmenter!r}, which uses a random "
            "layer of somebody else's. Pass that layer, a `keras.Sequential` "
            "of several, or a layer with them as attributes."
        )
    return views


def augment(augmenter, images):
    """One random view of each image.

    Args:
        augmenter: layer or callable. A layer gets `training=True`, which Keras
            passes to the layers within, and so does a callable that takes it:
            without it Keras's layers change nothing.
        images: whatever it takes.
    """
    if isinstance(augmenter, keras.Layer):
        return augmenter(images, training=True)
    try:
        takes_training = "training" in inspect.signature(augmenter).parameters
    except (TypeError, ValueError):  # not a function of Python's
        takes_training = False
    return augmenter(images, **({"training": True} if takes_training else {}))


class TwoViews:
    """See `two_views`.

    Args:
        stream: `data.ImageStream`.
        augmenter, batch_size: as in `two_views`.

    Raises:
        ValueError: if the stream has fewer images than a batch.
    """

    def __init__(self, stream, augmenter, batch_size):
        checks.check_batch_size(batch_size, stream.num_examples)
        stream.check_images()
        self.stream = stream
        self.augmenter = augmenter
        self.batch_size = batch_size

    def training_batches(self, strategy, pixels=None):
        """As `inputs.training_batches`; without `pixels` of any format."""
        self.stream.check_images(pixels)
        distribution.check_batch(self.batch_size, strategy)
        num_images = self.stream.num_examples
        steps = num_images // self.batch_size

        def read(seed, shuffle, began, taken, done):
            start = batching.first_batch(began, taken, steps)
            examples = self._numbered_examples(
                seed if shuffle else None, steps, start
            )
            return distribution.distribute_batches(
                examples.batch(self.batch_size, drop_remainder=True),
                lambda parts: self._read(parts, seed),
                strategy,
            )

        return batching.Batches(
            read, steps, self.batch_size, num_images, self.stream.image_dtype
        )

    def _numbered_examples(self, seed, steps, start):
        """Endless (number, example to decode), from batch `start` on."""
        images_per_pass = steps * self.batch_size

        def in_order(number):
            key = None if seed is None else random.key(seed, "order", number)
            return self.stream.encoded(key).take(images_per_pass)

        passes = tf.data.Dataset.counter(start // steps)
        numbers = tf.data.Dataset.counter(start // steps * images_per_pass)
        numbered = tf.data.Dataset.zip(numbers, passes.flat_map(in_order))
        return batching.without_autotuning(
            numbered.skip(start % steps * self.batch_size)
        )

    def _read(self, parts, seed):
        """Batches of views, from batches (n,) of numbered examples."""
        layers = range(len(random_states(self.augmenter)))

        def views(number, example):
            keys = [random.key(seed, "views", i) for i in layers]
            return random_views(self.augmenter, keys, number, example["image"])

        (size,) = {x.shape[0] for x in tf.nest.flatten(parts.element_spec)}
        return damaged.decoded(self.stream, parts, views, size)
