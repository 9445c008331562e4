"""Naive versions of what the library computes, written from the papers."""

import math

import numpy as np


def unit_rows(rng, n, dim=8):
    x = rng.normal(size=(n, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype("float32")


def threefry(key, counter):
    """Two words for a counter, in Python integers (Salmon et al., figure 2)."""
    keys = [*key, 0x1BD11BDA ^ key[0] ^ key[1]]
    x = [(counter[i] + keys[i]) % 2**32 for i in range(2)]
    rotations = [13, 15, 26, 6, 17, 29, 16, 24]
    for i in range(20):
        x[0] = (x[0] + x[1]) % 2**32
        bits = rotations[i % 8]
        x[1] = (x[1] << bits | x[1] >> 32 - bits) % 2**32 ^ x[0]
        if i % 4 == 3:
            n = i // 4 + 1
            x[0] = (x[0] + keys[n % 3]) % 2**32
            x[1] = (x[1] + keys[(n + 1) % 3] + n) % 2**32
    return x


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


def kolmogorov_smirnov(a, b):
    """Largest distance of two samples' distributions, over its critical value.

    Above 1, the samples differ at a significance level of 0.001.
    """
    a, b = np.sort(a), np.sort(b)
    both = np.concatenate([a, b])
    distance = np.abs(
        np.searchsorted(a, both, "right") / len(a)
        - np.searchsorted(b, both, "right") / len(b)
    ).max()
    return distance / (1.949 * np.sqrt((len(a) + len(b)) / (len(a) * len(b))))


def chi_square(a, b):
    """Chi-square statistic of two rows of counts with the same total."""
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    counted = a + b > 0
    return ((a - b)[counted] ** 2 / (a + b)[counted]).sum()


def squared_distance(a, b):
    return sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))


def alignment(q, k):
    """Section 4.1.1 of Wang and Isola, one image at a time."""
    return np.mean([squared_distance(*pair) for pair in zip(q, k, strict=True)])


def uniformity(x):
    """Section 4.1.2 of Wang and Isola, one pair at a time."""
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    potentials = [math.exp(-2 * squared_distance(x[i], x[j])) for i, j in pairs]
    return math.log(sum(potentials) / len(pairs))


def rank_me(x):
    """Equations 2 and 3 of RankMe, by the eigenvalues of x^T x."""
    x = np.asarray(x, "float64")
    values = np.linalg.eigvalsh(x.T @ x if len(x) > x.shape[1] else x @ x.T)
    singular = [math.sqrt(max(value, 0)) for value in values]
    total = sum(singular)
    entropy = 0.0
    for value in singular:
        p = value / total + 1e-7
        entropy -= p * math.log(p)
    return math.exp(entropy)


def deviation(x):
    """Mean over the elements of their standard deviation, times sqrt(D)."""
    deviations = []
    for column in np.asarray(x, "float64").T:
        mean = sum(column) / len(column)
        squares = sum((value - mean) ** 2 for value in column)
        deviations.append(math.sqrt(squares / len(column)))
    return sum(deviations) / len(deviations) * math.sqrt(x.shape[1])


def mean_similarity(x):
    """Mean dot product of different rows, one pair at a time."""
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    return sum(float(x[i] @ x[j]) for i, j in pairs) / len(pairs)


def found_among(q, k, num_negatives):
    """Share of queries nearer to their key than to those that follow it."""
    found = 0
    for n in range(len(q)):
        others = [k[(n + i + 1) % len(q)] for i in range(num_negatives)]
        found += all(q[n] @ k[n] > q[n] @ other for other in others)
    return found / len(q)
