"""Weighted k-nearest-neighbor classification of frozen features."""

import warnings

import numpy as np
from keras import ops

from moco_keras import arguments
from moco_keras.evaluation import features

_MOST = 200  # neighbors, in the literature


def nearest(bank, queries, k):
    """Finds the nearest rows of a bank by cosine similarity.

    Args:
        bank: float (B, D), rows of any length.
        queries: float (Q, D), rows of any length.
        k: neighbors to find, at most B.

    Returns:
        Similarities, float32 (Q, k), in falling order, and the int64 (Q, k)
        rows of the bank they belong to. Among equal similarities the earlier
        row comes first. A row of zeros has similarity 0 to all.

    Raises:
        ValueError: if the bank has fewer than `k` rows, or a value is not
            finite.
    """
    k = _within(k, len(bank))
    features.check_finite(bank=bank, queries=queries)
    bank, queries = features.unit_rows(bank), features.unit_rows(queries)
    bank = ops.transpose(ops.convert_to_tensor(bank))
    found = [
        # Equal values stay in their order.
        ops.top_k(ops.matmul(queries[start : start + 1024], bank), k)
        for start in range(0, len(queries), 1024)  # bounds the memory
    ]
    similarities, rows = zip(*found, strict=True)
    return np.concatenate(similarities), np.concatenate(rows).astype("int64")


def predict(bank, bank_labels, queries, k=None, temperature=0.1):
    """Classifies by a vote of the nearest images of a bank.

    A neighbor of similarity s votes for its label with weight
    exp(s / temperature).

    Args:
        bank: float (B, D), rows of any length.
        bank_labels: int (B,) or (B, 1), from 0.
        queries: float (Q, D), rows of any length.
        k: number of neighbors that vote; by default `default_k(bank_labels)`.
        temperature: positive; the lower, the more the nearest decide.

    Returns:
        int64 (Q,), the labels; among labels with equal votes the smallest.

    Raises:
        ValueError: if the bank has fewer than `k` images, a value is not
            finite, or labels are missing or are not class numbers.

    Reference:
        Section 3.4 of [Wu et al., 2018](https://arxiv.org/abs/1805.01978).
    """
    bank_labels = check_labels(len(bank), bank_labels=bank_labels)
    k = default_k(bank_labels) if k is None else k
    temperature = check_temperature(temperature)
    similarities, rows = nearest(bank, queries, k)
    # The common factor of a query's votes would overflow at a low temperature.
    weights = np.exp((similarities - similarities[:, :1]) / temperature)
    classes, candidates = np.unique(bank_labels, return_inverse=True)
    places = np.arange(len(queries))[:, None] * len(classes) + candidates[rows]
    votes = np.bincount(
        places.ravel(), weights.ravel(), len(queries) * len(classes)
    )
    return classes[np.argmax(votes.reshape(-1, len(classes)), axis=1)]


def accuracy(bank, bank_labels, queries, labels, k=None, temperature=0.1):
    """Fraction of `queries` to which `predict` gives the label in `labels`.

    Args:
        labels: int (Q,) or (Q, 1), from 0. One that the bank lacks is never
            found.
        bank, bank_labels, queries, k, temperature: as in `predict`.
    """
    labels = check_labels(len(queries), labels=labels)
    predicted = predict(bank, bank_labels, queries, k, temperature)
    return float(np.mean(predicted == labels))


def default_k(bank_labels):
    """The number of neighbors that vote by default.

    200, as in the literature, but at most as many as the bank's smallest class
    has images: with more, some neighbors would be of another class however good
    the features are.

    Args:
        bank_labels: int (B,).
    """
    _, counts = np.unique(bank_labels, return_counts=True)
    return int(min(_MOST, counts.min()))


def check_k(k, bank_labels):
    """Returns the number of neighbors, and warns if there are too many.

    Args:
        k: the number, or None for `default_k`.
        bank_labels: int (B,).

    Raises:
        ValueError: if the bank has fewer images.
    """
    if k is None:
        return default_k(bank_labels)
    k = _within(k, len(bank_labels))
    _, counts = np.unique(bank_labels, return_counts=True)
    if k > counts.min():
        warnings.warn(
            f"`k` exceeds the {counts.min()} images of the bank's smallest "
            "class, so that images of other classes always vote, too. "
            f"Received: k={k}. Leave `k` out to have it chosen.",
            stacklevel=3,
        )
    return k


def check_temperature(temperature):
    """Returns the temperature as a `float`, which must be positive."""
    return arguments.real(arguments.POSITIVE, temperature=temperature)


def check_labels(num_images, **labels):
    """Returns labels as int64 (N,).

    Args:
        num_images: N.
        labels: (N,) or (N, 1), from 0, by the name that users know them by.

    Raises:
        ValueError: if they are not class numbers, or not one for each image.
    """
    ((name, given),) = labels.items()
    labels = np.asarray(given)
    expected = (
        f"`{name}` must be one class number from 0 on for each of the "
        f"{num_images} images."
    )
    if labels.shape not in ((num_images,), (num_images, 1)) or not num_images:
        one_hot = labels.ndim == 2 and len(labels) == num_images
        remedy = f" Pass `np.argmax({name}, axis=1)`." if one_hot else ""
        raise ValueError(f"{expected} Received: shape={labels.shape}.{remedy}")
    labels = labels.reshape(-1)
    wrong = labels
    if labels.dtype.kind in "iub":
        wrong = labels[:0]
    elif labels.dtype.kind == "f":
        wrong = labels[~np.isfinite(labels) | (labels != np.round(labels))]
    if len(wrong):
        raise ValueError(
            f"{expected} Received: {wrong[0]!s} among them, of "
            f"dtype={labels.dtype}. Give each class a number."
        )
    if labels.min() < 0:
        raise ValueError(
            f"{expected} Received: {labels.min()} among them. Leave unlabeled "
            "images out, as `data.load(...).only_labelled()` does."
        )
    return labels.astype("int64")


def _within(k, num_images):
    k = arguments.whole(k=k)
    if k > num_images:
        raise ValueError(
            f"`k` must be between 1 and the bank's {num_images} images. "
            f"Received: k={k}. Use a larger bank or a smaller k."
        )
    return k
