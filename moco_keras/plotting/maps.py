"""A map of embeddings in two dimensions, with the images on it."""

import colorsys
import math

import numpy as np
import tensorflow as tf

from moco_keras.data.image_sets import UNLABELLED
from moco_keras.evaluation import knn
from moco_keras.pixel_format import as_rgb
from moco_keras.plotting.figures import OTHER
from moco_keras.plotting.page import data_uri

_LEAST, _MOST = 10, 1000  # images
_NEAREST = 5
_SIDE = 48  # pixels of a thumbnail, at most
_COLUMNS = 32  # of thumbnails
_MOST_NAMED = 30  # classes
_GRAY = "#8a8a8a"


def embedding_map(features, images, labels, class_names):
    """Places images so that those with similar features are near each other.

    By UMAP where it is installed, else by scikit-learn's t-SNE, from the
    cosine distances of the features.

    Args:
        features: float (N, D), rows of length 1; the first 1,000 are used.
        images: (N, H, W, C), pixels in [0, 255].
        labels: int (N,), -1 for an image without one.
        class_names: a name for each label.

    Returns:
        What `report` takes as `map`: a dict of strings, numbers and lists. None
        for fewer than ten images, and for features that are all the same.

    Reference:
        [van der Maaten and Hinton,
        2008](https://www.jmlr.org/papers/v9/vandermaaten08a.html).
    """
    features, images, labels = (x[:_MOST] for x in (features, images, labels))
    count = len(features)
    if count < _LEAST or not np.ptp(features, axis=0).any():
        return None
    method, places = _in_two_dimensions(features)
    places = places - places.min(axis=0)
    places = 0.04 + 0.92 * places / max(places.max(), 1e-30)
    similarities, rows = knn.nearest(features, features, _NEAREST + 1)
    known = sorted(set(labels.tolist()) - {UNLABELLED})
    colors = [_GRAY, *_colors(len(known))] if known else [OTHER]
    number = {label: i + 1 for i, label in enumerate(known)}
    names = [
        f"{class_names[label]}, image {i + 1}"
        if label in number
        else f"image {i + 1}"
        for i, label in enumerate(labels.tolist())
    ]
    legend = [(class_names[label], colors[number[label]]) for label in known]
    return {
        "method": method,
        "sprite": data_uri(_sprite(images), "jpeg"),
        "legend": legend if len(legend) <= _MOST_NAMED else [],
        "data": {
            "points": [
                [round(float(x), 4), round(float(y), 4), number.get(label, 0)]
                for (x, y), label in zip(places, labels.tolist(), strict=True)
            ],
            "colors": colors,
            "columns": _COLUMNS,
            "side": min(_SIDE, images.shape[1]),
            "names": names,
            "nearest": [
                [
                    [int(j), round(float(s), 4)]
                    for j, s in zip(found, cosines, strict=True)
                    if j != i
                ][:_NEAREST]
                for i, (found, cosines) in enumerate(
                    zip(rows, similarities, strict=True)
                )
            ],
        },
    }


def _in_two_dimensions(features):
    """The name of the method, and float (N, 2)."""
    try:
        import umap
    except ImportError:
        from sklearn import manifold

        # Of unit vectors, Euclidean distances are in the order of the cosines.
        perplexity = min(30, (len(features) - 1) / 3)
        # By its principal components, the default, it would begin with NaN
        # where these have no length, and end the process.
        method = manifold.TSNE(
            init="random", perplexity=perplexity, random_state=0
        )
        return "t-SNE", method.fit_transform(features)
    method = umap.UMAP(metric="cosine", random_state=0)
    return "UMAP", method.fit_transform(features)


def _colors(count):
    """Colors that differ in hue, and in turn in lightness."""
    colors = []
    for i in range(count):
        rgb = colorsys.hls_to_rgb(i / count, (0.38, 0.55)[i % 2], 0.7)
        colors.append("#" + "".join(f"{round(255 * x):02x}" for x in rgb))
    return colors


def _sprite(images):
    """A JPEG file of all images, row by row, each a small square."""
    side = min(_SIDE, images.shape[1])
    small = tf.image.resize(as_rgb(images), (side, side), antialias=True)
    small = tf.cast(tf.round(small), "uint8").numpy()
    rows = math.ceil(len(small) / _COLUMNS)
    grid = np.full((rows * _COLUMNS, side, side, 3), 255, "uint8")
    grid[: len(small)] = small
    grid = grid.reshape(rows, _COLUMNS, side, side, 3).swapaxes(1, 2)
    return tf.io.encode_jpeg(
        grid.reshape(rows * side, _COLUMNS * side, 3), quality=85
    ).numpy()
