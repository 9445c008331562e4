"""Frozen features of images."""

import numpy as np


def extract(encoder, images, batch_size=256):
    """Runs an encoder in inference mode and normalises what it returns.

    Args:
        encoder: a `keras.Model` from images to vectors.
        images: uint8 (N, S, S, 3).
        batch_size: images encoded at a time.

    Returns:
        float32 (N, D), each row of length 1.
    """
    features = encoder.predict(images, batch_size=batch_size, verbose=0)
    return unit_rows(features)


def unit_rows(features):
    """Divides each row of (N, ...) by its length, as float32 (N, D)."""
    features = np.reshape(features, (len(features), -1)).astype("float32")
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, 1e-12)
