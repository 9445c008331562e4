"""Frozen features of images."""

import numpy as np

from moco_keras import arguments, distribution, pixel_format
from moco_keras.data import checks
from moco_keras.models import derived


def extract(encoder, images, batch_size=256):
    """Runs an encoder in inference mode and normalizes what it returns.

    Args:
        encoder: a `MoCo`, for the features of its query encoder's backbone, or
            any `keras.Model` from images to vectors.
        images: (N, H, W, C), as the encoder takes them.
        batch_size: images encoded at a time.

    Returns:
        float32 (N, D), each row of length 1.

    Example:
        >>> features = extract(model, images)  # of a MoCo, what `predict`'s
        >>> projections = model.predict(images)  # projections are made of
    """
    batch_size = arguments.whole(batch_size=batch_size)
    query_encoder = getattr(encoder, "query_encoder", None)
    if query_encoder is not None:
        encoder.average_statistics()  # after an epoch that was interrupted
        with encoder.distribute_strategy.scope():  # for all its replicas
            encoder = derived.with_float32_outputs(
                derived.backbone(query_encoder)
            )
    if pixel_format.takes_pixels(encoder):
        checks.check_images(images, pixels=pixel_format.of(encoder))
    return unit_rows(outputs(encoder, images, batch_size))


def outputs(encoder, images, batch_size=256):
    """Runs an encoder in inference mode, on all replicas that it is on."""
    return distribution.predict(
        lambda x, size: encoder.predict(x, batch_size=size, verbose=0),
        images,
        batch_size,
        encoder.distribute_strategy,
    )


def unit_rows(features):
    """Divides each row of (N, ...) by its length, as float32 (N, D).

    A row of zeros stays as it is.
    """
    features = np.reshape(features, (len(features), -1))
    features = features.astype("float32", copy=False)
    # In float64: a square may exceed the range of float32.
    squares = np.einsum("nd,nd->n", features, features, dtype="float64")
    lengths = np.sqrt(squares).astype("float32")[:, None]
    return features / np.where(lengths > 0, lengths, 1)


def check_finite(**arrays):
    """Raises `ValueError` if a row of a feature array holds NaN or infinity.

    Args:
        arrays: float (N, ...), by the names that users know them by.
    """
    for name, rows in arrays.items():
        rows = np.reshape(rows, (len(rows), -1))
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"Features must be finite. Received: {np.sum(~finite)} rows of "
                f"`{name}` that are not. The encoder has diverged; lower its "
                "learning rate."
            )
