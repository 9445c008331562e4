"""Frozen features of images."""

import numpy as np

from moco_keras import distribution


def extract(encoder, images, batch_size=256):
    """Runs an encoder in inference mode and normalises what it returns.

    Args:
        encoder: a `keras.Model` from images to vectors.
        images: uint8 (N, S, S, 3).
        batch_size: images encoded at a time.

    Returns:
        float32 (N, D), each row of length 1.
    """
    return unit_rows(outputs(encoder, images, batch_size))


def outputs(encoder, images, batch_size=256):
    """What an encoder returns in inference mode, by all replicas it is on."""
    return distribution.predict(
        lambda x, size: encoder.predict(x, batch_size=size, verbose=0),
        images,
        batch_size,
        encoder.distribute_strategy,
    )


def unit_rows(features):
    """Divides each row of (N, ...) by its length, as float32 (N, D)."""
    features = np.reshape(features, (len(features), -1)).astype("float32")
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, 1e-12)
