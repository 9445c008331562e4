"""Random views of images with their labels, to train a classifier."""

import numpy as np
import tensorflow as tf

from moco_keras import arguments, pixel_format, random
from moco_keras.data import batching, checks, damaged
from moco_keras.data.image_sets import UNLABELLED, ImageSet
from moco_keras.data.views import random_states, random_views


def labeled_batches(
    images, augmenter, batch_size, *, seed=0, start=0, value_range=None
):
    """Batches of random views with their labels, without end.

    Every pass has all images in a new order, and a batch may hold the end of a
    pass and the beginning of the next. Give `fit` a number of
    `steps_per_epoch`, or its first epoch has no end:

        batches = labeled_batches(images, crop_and_flip(32), 256)
        steps = math.ceil(images.num_examples / 256)
        model.fit(batches, steps_per_epoch=steps, epochs=20, shuffle=False)

    Args:
        images: an `ImageSet`, or an `ImageStream` of images of any sizes.
        augmenter: as in `two_views`.
        batch_size: images in a batch.
        seed: of the orders and the views, which depend on nothing else.
        start: number of the first batch, of a training run that resumes.
        value_range: of the images, as in `build_encoder`.

    Returns:
        A `tf.data.Dataset` of (float32 (N, H, W, C), int64 (N,)).

    Raises:
        ValueError: if an image has no label, pixels are not of the range, or
            the augmenter uses random layers that are not its own.
    """
    batch_size = arguments.whole(batch_size=batch_size)
    seed = arguments.whole(arguments.SEED, seed=seed)
    if value_range is not None:
        value_range = arguments.value_range(value_range)
    pixels_of = pixel_format.PixelFormat(None, value_range)
    if isinstance(images, ImageSet):
        checks.check_images(images.images, pixels=pixels_of)
    else:
        images.check_images(pixels_of)
    _check_labels(images)
    keys = [
        random.key(seed, "views", i)
        for i in range(len(random_states(augmenter)))
    ]

    def view(number, image, label):
        (view,) = random_views(augmenter, keys, number, image, count=1)
        return view, label

    first = start * batch_size  # image

    def in_order(of_order):
        """What a function makes of the key of each pass, from `first` on."""
        passes = tf.data.Dataset.counter(first // images.num_examples)
        return passes.flat_map(
            lambda number: of_order(random.key(seed, "order", number))
        ).skip(first % images.num_examples)

    if isinstance(images, ImageSet):
        pixels, labels = tf.constant(images.images), tf.constant(images.labels)

        def rows(key):
            order = random.permutation(key, images.num_examples)
            return tf.data.Dataset.from_tensor_slices(order)

        def views(number, rows):  # of a batch at once
            return view(
                number, tf.gather(pixels, rows), tf.gather(labels, rows)
            )

        batches = (
            in_order(rows)
            .batch(batch_size, drop_remainder=True)
            .enumerate(start)
            .map(views, num_parallel_calls=tf.data.AUTOTUNE)
        )
    else:
        batches = damaged.decoded(
            images,
            in_order(images.encoded)
            .enumerate(first)
            .batch(batch_size, drop_remainder=True),
            lambda i, x: view(i, x["image"], x["label"]),
            batch_size,
        )
    return batching.without_autotuning(batches.prefetch(tf.data.AUTOTUNE))


def _check_labels(images):
    labels = images.labels
    if labels is None:  # of a prepared data set: all have one, or no image
        first = images.dataset.take(1).as_numpy_iterator()
        labels = np.array([example["label"] for example in first])
    if (labels == UNLABELLED).any():
        raise ValueError(
            "`images` must all have a label. Received: images without one, in "
            f"{images.source}. Pass `images.only_labelled()`, where some have "
            "one."
        )
