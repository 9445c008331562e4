"""Naive versions of what the library computes, written from the papers."""

import math

import numpy as np


def unit_rows(rng, n, dim=8):
    x = rng.normal(size=(n, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype("float32")


def info_nce(q, k, queue, temperature):
    """Equation 1 of MoCo, one query at a time."""
    losses = []
    for n in range(len(q)):
        positive = math.exp(float(q[n] @ k[n]) / temperature)
        negatives = sum(
            math.exp(float(q[n] @ old) / temperature) for old in queue
        )
        losses.append(-math.log(positive / (positive + negatives)))
    return np.array(losses)


def knn(bank, bank_labels, queries, k, temperature):
    """The weighted vote, one query at a time."""
    predictions = []
    for query in queries:
        ranked = sorted(
            range(len(bank)), key=lambda i: -float(bank[i] @ query)
        )[:k]
        votes = {}
        for i in ranked:
            weight = math.exp(float(bank[i] @ query) / temperature)
            label = bank_labels[i]
            votes[label] = votes.get(label, 0.0) + weight
        predictions.append(max(votes, key=votes.get))
    return np.array(predictions)


def sgd(w, gradients, rates, momentum, l2):
    """SGD as PyTorch documents it, weight decay through the buffer."""
    buffer = np.zeros_like(w)
    for g, rate in zip(gradients, rates, strict=True):
        buffer = momentum * buffer + g + l2 * w
        w = w - rate * buffer
    return w


def batch_norm(x, splits, epsilon):
    """Batch norm of neighbouring groups, with each group's statistics."""
    outputs, means, variances = [], [], []
    size = len(x) // splits
    for s in range(splits):
        group = x[s * size : (s + 1) * size].astype("float64")
        count = group[..., 0].size
        mean = group.mean(axis=(0, 1, 2))
        variance = ((group - mean) ** 2).mean(axis=(0, 1, 2))
        outputs.append((group - mean) / np.sqrt(variance + epsilon))
        means.append(mean)
        variances.append(variance * count / (count - 1))
    return np.concatenate(outputs), np.mean(means, 0), np.mean(variances, 0)


def triangle_resize(row, start, length, out_size):
    """Crops and resizes a row of numbers with PIL's triangle filter."""
    scale = length / out_size
    support = max(scale, 1.0)
    result = []
    for i in range(out_size):
        centre = start + (i + 0.5) * scale
        total = weight_sum = 0.0
        for j in range(int(start), int(start + length)):
            weight = max(0.0, 1.0 - abs(j + 0.5 - centre) / support)
            total += weight * row[j]
            weight_sum += weight
        result.append(total / weight_sum)
    return np.array(result)
