"""Weighted k-nearest-neighbour classification of frozen features."""

import numpy as np


def nearest(bank, queries, k):
    """Finds the nearest rows of a bank by cosine similarity.

    Args:
        bank: float32 (B, D), rows of length 1.
        queries: float32 (Q, D), rows of length 1.
        k: neighbours to find, at most B.

    Returns:
        Similarities, float32 (Q, k), in falling order, and the int64 (Q, k)
        rows of the bank they belong to.

    Raises:
        ValueError: if the bank has fewer than `k` rows.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(
            f"`k` must be between 1 and the bank's {len(bank)} images. "
            f"Received: k={k}. Use a larger bank or a smaller k."
        )
    similarities, rows = [], []
    for start in range(0, len(queries), 1024):  # bounds the memory
        block = queries[start : start + 1024] @ bank.T
        near = np.argpartition(-block, k - 1, axis=1)[:, :k]
        near_block = np.take_along_axis(block, near, axis=1)
        order = np.argsort(-near_block, axis=1, kind="stable")
        rows.append(np.take_along_axis(near, order, axis=1))
        similarities.append(np.take_along_axis(near_block, order, axis=1))
    return np.concatenate(similarities), np.concatenate(rows)


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
        ValueError: if the bank has fewer than `k` images.

    Reference:
        Section 3.4 of [Wu et al., 2018](https://arxiv.org/abs/1805.01978).
    """
    similarities, rows = nearest(bank, queries, k)
    labels = np.asarray(bank_labels)[rows]  # (Q, k)
    weights = np.exp(similarities / temperature)
    num_classes = int(np.max(bank_labels)) + 1
    votes = np.stack(
        [np.sum(weights * (labels == c), axis=1) for c in range(num_classes)],
        axis=1,
    )
    return np.argmax(votes, axis=1)


def accuracy(bank, bank_labels, queries, labels, k=200, temperature=0.1):
    """Share of `queries` that `predict` gives their own label of `labels`."""
    predicted = predict(bank, bank_labels, queries, k, temperature)
    return float(np.mean(predicted == np.asarray(labels)))
