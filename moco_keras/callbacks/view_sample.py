"""A fixed sample of images, and of views of them, that is encoded again."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from moco_keras.data import checks
from moco_keras.models import encoders

_BATCH = 128  # images that are encoded at a time, by both encoders
_DRAWN = 2**18  # pixels of the images of which views are cut at a time


class ViewSample:
    """Some images with two fixed views of each.

    Args:
        images: uint8 (N, H, W, 3), or pairs of views (im_q, im_k).
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
        """Takes the encoders of a model, which will draw the views anew."""
        encoder, key_encoder = model.query_encoder, model.key_encoder
        with model.distribute_strategy.scope():
            backbone = encoders.backbone(encoder)
            queries = keras.Model(
                encoder.input, [backbone.output, encoder.output]
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
        outputs, count = [], len(self.rows)
        for start in range(0, count, _BATCH):
            views = [x[start : start + _BATCH] for x in self._views]
            number = len(views[0])
            missing = min(_BATCH, count) - number
            padding = (0, missing), *[(0, 0)] * 3  # one shape, one trace
            views = [np.pad(x, padding, mode="edge") for x in views]
            encoded = self._encode_batch(*views)
            outputs.append([x.numpy()[:number] for x in encoded])
        return [
            np.concatenate(x).reshape(count, -1).astype("float32")
            for x in zip(*outputs, strict=True)
        ]

    def _draw_views(self):
        """Sets the views, and the share of images that have two equal.

        At the first use, since by then a training step has compiled the layers.
        """
        pairs, equal = [], []
        height, width = self._model.query_encoder.input_shape[1:3]
        batch_size = max(1, _DRAWN // ((height or 224) * (width or 224)))
        pixels = encoders.takes_pixels(self._model.query_encoder)
        for number, start in enumerate(range(0, len(self.rows), batch_size)):
            part = slice(start, start + batch_size)
            batch = keras.tree.map_structure(lambda x: x[part], self.images)  # noqa: B023 (called at once)
            views = self._model.fixed_views(batch, number)
            views = [ops.convert_to_numpy(x) for x in views]
            equal.extend((views[0] == views[1]).all(axis=(1, 2, 3)))
            if pixels:  # a fourth of the memory
                views = [np.clip(np.rint(x), 0, 255) for x in views]
                views = [x.astype("uint8") for x in views]
            pairs.append(views)
        self._views = [np.concatenate(x) for x in zip(*pairs, strict=True)]
        self.equal_views = float(np.mean(equal))


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
        checks.check_images(images)
        images = np.asarray(images)
    lengths = [len(x) for x in keras.tree.flatten(images)]
    if min(lengths) < 2 or len(set(lengths)) > 1:
        raise ValueError(
            "`images` must be two or more, to be compared with each other, and "
            "have a view each in both arrays of pairs. Received: "
            f"{' and '.join(map(str, lengths))}."
        )
    return images
