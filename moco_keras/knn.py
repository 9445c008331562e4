"""Weighted k-nearest-neighbour classification of frozen features."""

import numpy as np
from keras import ops


def nearest(bank, queries, k):
    """Finds the nearest rows of a bank by cosine similarity.

    Args:
        bank: float32 (B, D), rows of length 1.
        queries: float32 (Q, D), rows of length 1.
        k: neighbours to find, at most B.

    Returns:
        Similarities, float32 (Q, k), in falling order, and the int64 (Q, k)
        rows of the bank they belong to. Of equal similarities the earlier row
        comes first.

    Raises:
        ValueError: if the bank has fewer than `k` rows, or a value is not
            finite.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(
            f"`k` must be between 1 and the bank's {len(bank)} images. "
            f"Received: k={k}. Use a larger bank or a smaller k."
        )
    for name, rows in {"bank": bank, "queries": queries}.items():
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"Features must be finite. Received: {np.sum(~finite)} rows of "
                f"`{name}` that are not. The encoder has diverged; lower its "
                "learning rate."
            )
    bank = ops.transpose(ops.convert_to_tensor(bank))
    found = [
        # Of equal values the first is first.
        ops.top_k(ops.matmul(queries[start : start + 1024], bank), k)
        for start in range(0, len(queries), 1024)  # bounds the memory
    ]
    similarities, rows = zip(*found, strict=True)
    return np.concatenate(similarities), np.concatenate(rows).astype("int64")


def predict(bank, bank_labels, queries, k=200, temperature=0.1):
    """Classifies by a vote of the nearest images of a bank.

    A neighbour of similarity s votes for its label with weight
    exp(s / temperature).

    Args:
        bank: float32 (B, D), rows of length 1.
        bank_labels: int (B,), from 0.
        queries: float32 (Q, D), rows of length 1.
        k: number of neighbours that vote.
        temperature: the lower, the more the nearest decide.

    Returns:
        int64 (Q,), the labels; of labels with equal votes the smallest.

    Raises:
        ValueError: if the bank has fewer than `k` images, a value is not
            finite, or labels are missing or negative.

    Reference:
        Section 3.4 of [Wu et al., 2018](https://arxiv.org/abs/1805.01978).
    """
    bank_labels = np.asarray(bank_labels)
    if bank_labels.shape != (len(bank),) or bank_labels.min() < 0:
        raise ValueError(
            "`bank_labels` must be a label from 0 on for each of the bank's "
            f"{len(bank)} images. Received: shape={bank_labels.shape}, least "
            f"label {bank_labels.min()}. Leave unlabelled images out."
        )
    similarities, rows = nearest(bank, queries, k)
    # The common factor of a query's votes would overflow at a low temperature.
    weights = np.exp((similarities - similarities[:, :1]) / temperature)
    num_classes = int(bank_labels.max()) + 1
    places = np.arange(len(queries))[:, None] * num_classes + bank_labels[rows]
    votes = np.bincount(
        places.ravel(), weights.ravel(), len(queries) * num_classes
    )
    return np.argmax(votes.reshape(-1, num_classes), axis=1)


def accuracy(bank, bank_labels, queries, labels, k=200, temperature=0.1):
    """Share of `queries` that `predict` gives their own label of `labels`."""
    predicted = predict(bank, bank_labels, queries, k, temperature)
    return float(np.mean(predicted == np.asarray(labels)))
