"""Random views of images with their labels, to train a classifier."""

import tensorflow as tf

from moco_keras import arguments, random
from moco_keras.data import batching
from moco_keras.data.image_sets import ImageSet
from moco_keras.data.views import random_states, random_views


def labeled_batches(images, augmenter, batch_size, *, seed=0, start=0):
    """Batches of random views with their labels, without end.

    Every pass has all images in a new order, and a batch may hold the end of a
    pass and the beginning of the next. Give `fit` the number of
    `steps_per_epoch`:

        batches = labeled_batches(images, crop_and_flip(32), 256)
        steps = math.ceil(images.num_examples / 256)
        model.fit(batches, steps_per_epoch=steps, epochs=20)

    Args:
        images: an `ImageSet`, or an `ImageStream` of images of any sizes.
        augmenter: as in `two_views`.
        batch_size: images in a batch.
        seed: of the orders and the views, which depend on nothing else.
        start: number of the first batch, of a training run that resumes.

    Returns:
        A `tf.data.Dataset` of (float32 (N, S, S, 3), int64 (N,)).

    Raises:
        ValueError: if an image has no label.
    """
    batch_size = arguments.whole(batch_size=batch_size)
    seed = arguments.whole(arguments.SEED, seed=seed)
    labels = images.labels
    if labels is not None and not (len(labels) and labels.min() >= 0):
        raise ValueError(
            "`images` must all have a label. Received: "
            f"{int((labels < 0).sum())} of {images.num_examples} without one, "
            f"in {images.source}. Pass `images.only_labelled()`."
        )
    keys = [
        random.key(seed, "views", i)
        for i in range(len(random_states(augmenter)))
    ]

    def view(number, image, label):
        (view,) = random_views(augmenter, keys, number, image, count=1)
        return view, label

    passes = tf.data.Dataset.counter()
    if isinstance(images, ImageSet):
        pixels, labels = tf.constant(images.images), tf.constant(labels)

        def rows(number):
            order = random.key(seed, "order", number)
            return tf.data.Dataset.from_tensor_slices(
                random.permutation(order, images.num_examples)
            )

        batches = (
            passes.flat_map(rows)
            .batch(batch_size, drop_remainder=True)
            .enumerate()
            .skip(start)
            .map(
                lambda number, rows: view(
                    number, tf.gather(pixels, rows), tf.gather(labels, rows)
                ),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
        )
    else:
        images.check_images()

        def decode(number, encoded):
            example = images.decode(encoded)
            return view(number, example["image"], example["label"])

        batches = (
            passes.flat_map(
                lambda number: images.encoded(random.key(seed, "order", number))
            )
            .enumerate()
            .skip(start * batch_size)
            .map(decode, num_parallel_calls=tf.data.AUTOTUNE)
            .batch(batch_size, drop_remainder=True)
        )
    return batching.without_autotuning(batches.prefetch(tf.data.AUTOTUNE))
