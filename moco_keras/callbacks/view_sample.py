"""A fixed sample of images, and of views of them, that is encoded again."""

import keras
import numpy as np
import tensorflow as tf

from moco_keras import pixel_format
from moco_keras.data import checks
from moco_keras.models import derived

_BATCH = 128  # images that are encoded at a time, by both encoders
_DRAWN = 2**18  # pixels of views of one encoder that are cut at a time


class ViewSample:
    """Some images with two fixed views of each.

    Args:
        images: (N, H, W, C), or pairs of views (im_q, im_k).
        size: how many to draw, at most N.

    Attributes:
        images: those that were drawn, or the views.
        rows: int (n,), which they are.
        num_images: N.
        are_pairs: whether they are pairs of views.
        equal_views: share of images whose two views are equal; None until they
            are drawn.

    Raises:
        ValueError: if they are not as above, or fewer than two.
    """

    def __init__(self, images, size):
        images = _checked(images)
        self.are_pairs = isinstance(images, tuple)
        self.num_images = len(keras.tree.flatten(images)[0])
        rows = np.random.default_rng(0).permutation(self.num_images)[:size]
        self.rows = np.sort(rows)
        self.images = keras.tree.map_structure(lambda x: x[self.rows], images)
        self.equal_views = None

    def set_model(self, model):
        """Takes the encoders of a model, which will draw the views anew.

        Raises:
            ValueError: if it cannot cut the views, or take them.
        """
        encoder, key_encoder = model.view_encoders
        if self.are_pairs:
            checks.check_views(*self.images, encoder)
        else:
            checks.check_images(self.images, pixels=model.pixels)
        if not self.are_pairs and model.augmenter is None:
            raise ValueError(
                "`images` must be pairs of views, as the model has no "
                "augmenter to cut them. Received: images of shape "
                f"{self.images.shape}. Pass `(im_q, im_k)`."
            )
        with model.distribute_strategy.scope():
            queries = model.for_views(
                derived.features_and_projections(model.query_encoder)
            )
        self._model, self._views = model, None
        # Keras's `predict` would take longer than the arithmetic. All replicas
        # hold the same weights, so that one of them can do it. As one function,
        # both encoders run side by side.
        self._encode_batch = tf.function(
            lambda im_q, im_k: [
                *queries(im_q, training=False),
                key_encoder(im_k, training=False),
            ]
        )

    def encode(self):
        """Encodes the views in inference mode.

        Returns:
            Features (n, D) and projections (n, C) of the first view of each
            image by the query encoder, and projections (n, C) of the second by
            the key encoder; float32, not normalized.
        """
        if self._views is None:
            self._draw_views()
        self._model.average_statistics()
        return [
            x.reshape(len(x), -1).astype("float32")
            for x in _by_batch(self._encode_batch, self._views, _BATCH)
        ]

    def _draw_views(self):
        """Sets the views, and the share of images that have two equal.

        At the first use, since by then a training step has compiled the layers.
        """
        height, width = self._model.view_encoders[0].input_shape[1:3]
        batch_size = max(1, _DRAWN // ((height or 224) * (width or 224)))
        numbers = np.arange(len(self.rows)) // batch_size
        takes_pixels = pixel_format.takes_pixels(self._model.query_encoder)

        def draw(number, *images):
            data = images if self.are_pairs else images[0]
            im_q, im_k = self._model.fixed_views(data, number[0])
            equal = tf.reduce_all(im_q == im_k, axis=(1, 2, 3))
            if self._model.pixels.value_range is None and takes_pixels:
                pixels = [tf.clip_by_value(x, 0, 255) for x in (im_q, im_k)]
                # A fourth of the memory.
                im_q, im_k = (tf.cast(tf.round(x), "uint8") for x in pixels)
            return im_q, im_k, equal

        if not self._model.run_eagerly:
            # Or TensorFlow would warn of functions that it traces again.
            draw = tf.function(draw)
        arrays = [numbers, *keras.tree.flatten(self.images)]
        *self._views, equal = _by_batch(draw, arrays, batch_size)
        self.equal_views = float(np.mean(equal))


def _by_batch(function, arrays, batch_size):
    """Applies a function to batches of one size; joins what it returns."""
    count, results = len(arrays[0]), []
    batch_size = min(batch_size, count)
    for start in range(0, count, batch_size):
        rows = np.arange(start, start + batch_size)
        batch = [tf.constant(x[np.minimum(rows, count - 1)]) for x in arrays]
        results.append([x.numpy() for x in function(*batch)])
    return [np.concatenate(x)[:count] for x in zip(*results, strict=True)]


def _checked(images):
    """An array of images, or a tuple of two arrays of views."""
    if isinstance(images, (tuple, list)) and len(images) == 2:
        images = tuple(np.asarray(x) for x in images)
        checks.check_pair(*images)
    elif isinstance(images, tf.data.Dataset):
        raise ValueError(
            "`images` must be an array. Received a data set. Pass some of its "
            "images, with `num_images`."
        )
    else:
        checks.check_images(images, pixels=None)
        images = np.asarray(images)
    lengths = [len(x) for x in keras.tree.flatten(images)]
    if min(lengths) < 2 or len(set(lengths)) > 1:
        raise ValueError(
            "`images` must be two or more, to be compared with each other, and "
            "have a view each in both arrays of pairs. Received: "
            f"{' and '.join(map(str, lengths))}."
        )
    return images
