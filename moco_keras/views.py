"""Random views that are cut where images are read, for files of any size."""

import keras
import tensorflow as tf

from moco_keras import arguments, distribution, inputs, random


def two_views(images, augmenter, batch_size):
    """Cuts two random views from each image, for images of unequal sizes.

    Args:
        images: an `ImageStream` of `data.read`, or a `tf.data.Dataset` of
            single images, uint8 (H, W, 3), alone, as (image, label) or as
            {"image", "label"}.
        augmenter: a pipeline of `augmentations`.
        batch_size: views in a batch; the last batch is dropped if not full.

    Returns:
        What `MoCo.fit` takes. Of a stream, `TwoViews`: images in a new order
        every pass, and views, both functions of the model's seed and the
        number of the pass. Of a data set, a data set of pairs (im_q, im_k),
        float32 (N, S, S, 3) each, in its order.
    """
    batch_size = arguments.whole(batch_size=batch_size)
    if not isinstance(images, tf.data.Dataset):
        return TwoViews(images, augmenter, batch_size)
    example = images.batch(1).element_spec
    inputs.check_images(inputs.images_of(example), example)

    def views(*example):
        image = inputs.images_of(example)
        return augmenter(image), augmenter(image)

    return inputs.without_autotuning(
        images.map(views, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(batch_size, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )


class TwoViews:
    """See `two_views`.

    Args:
        stream: `data.ImageStream`.
        augmenter, batch_size: as in `two_views`.

    Raises:
        ValueError: if the stream has fewer images than a batch.
    """

    def __init__(self, stream, augmenter, batch_size):
        inputs.check_batch_size(batch_size, stream.num_examples)
        stream.check_images()
        self.stream = stream
        self.augmenter = augmenter
        self.batch_size = batch_size

    def training_batches(self, strategy):
        """As `inputs.training_batches`."""
        distribution.check_batch(self.batch_size, strategy)
        steps = self.stream.num_examples // self.batch_size

        def batches(seed, shuffle, steps_taken, done):
            start = inputs.first_batch(steps_taken, steps, done)
            examples = self._examples(seed if shuffle else None, steps, start)
            return distribution.spread(
                examples.batch(self.batch_size, drop_remainder=True),
                lambda parts: self._read(parts, seed),
                strategy,
            )

        return batches, steps

    def _examples(self, seed, steps, start):
        """Numbered examples to decode, from batch `start`, without an end."""
        of_pass = steps * self.batch_size

        def in_order(number):
            key = None if seed is None else random.key(seed, "order", number)
            return self.stream.examples(key).take(of_pass)

        passes = tf.data.Dataset.counter(start // steps)
        numbers = tf.data.Dataset.counter(start // steps * of_pass)
        numbered = tf.data.Dataset.zip(numbers, passes.flat_map(in_order))
        return inputs.without_autotuning(
            numbered.skip(start % steps * self.batch_size)
        )

    def _read(self, parts, seed):
        """Views of batches (n,) of examples."""
        generators = [
            v
            for v in getattr(self.augmenter, "variables", [])
            if v.name == "seed_generator_state"
        ]

        def views(number, example):
            image = self.stream.decode(example)["image"]
            # Examples are read at the same time, in any order.
            states = [
                (v, random.fold_in(random.key(seed, "views", i), number))
                for i, v in enumerate(generators)
            ]
            with keras.StatelessScope(states):
                return self.augmenter(image), self.augmenter(image)

        (size,) = {x.shape[0] for x in tf.nest.flatten(parts.element_spec)}
        return (
            parts.unbatch()
            .map(views, num_parallel_calls=tf.data.AUTOTUNE)
            .batch(size, drop_remainder=True)
        )
