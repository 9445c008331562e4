"""Measures of health, against loops written from the papers."""

import math

import numpy as np
import pytest
import reference

from moco_keras.evaluation import health


@pytest.fixture(params=["spread", "alike", "collapsed", "negative"])
def vectors(request, rng):
    """Queries and keys (40, 8), rows of length 1, of several kinds."""
    q = reference.unit_rows(rng, 40)
    near = {"spread": 0.5, "alike": 1e-2, "collapsed": 1e-6, "negative": 1}
    if request.param != "spread":
        q = q[:1] + near[request.param] * q
    if request.param == "negative":
        q = -np.abs(q)
    k = q + 0.1 * rng.normal(size=q.shape)
    return [
        (x / np.linalg.norm(x, axis=1, keepdims=True)).astype("float32")
        for x in (q, k)
    ]


def test_alignment_and_uniformity_are_those_of_the_paper(vectors):
    q, k = vectors
    expected = reference.alignment(q, k)
    assert health.alignment(q, k) == pytest.approx(expected, rel=1e-5)
    expected = reference.uniformity(q)
    assert health.uniformity(q) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_deviation_and_similarity_are_those_of_loops(vectors):
    q, _ = vectors
    expected = reference.deviation(q)
    assert health.deviation(q) == pytest.approx(expected, rel=1e-5)
    expected = reference.mean_similarity(q)
    assert health.mean_similarity(q) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("num_negatives", [1, 5, 39])
def test_contrastive_accuracy_is_that_of_loops(vectors, num_negatives):
    q, k = vectors
    expected = reference.found_among(q, k, num_negatives)
    assert health.contrastive_accuracy(q, k, num_negatives) == expected
    if num_negatives == 39:  # more than there are
        assert health.contrastive_accuracy(q, k, 1000) == expected


@pytest.mark.parametrize("shape", [(30, 7), (7, 30), (20, 20)])
@pytest.mark.parametrize("rank", [1, 3, None])
def test_effective_rank_is_that_of_rankme(shape, rank, rng):
    x = rng.normal(size=shape)
    if rank:
        x = rng.normal(size=(shape[0], rank)) @ rng.normal(
            size=(rank, shape[1])
        )
    x = x.astype("float32")
    # Float32 leaves more than the eigenvalues of a rank that is too low.
    tolerance = 1e-5 if rank is None else 1e-4
    found = health.effective_rank(x)
    assert found == pytest.approx(reference.rank_me(x), rel=tolerance)
    assert 1 <= found <= min(shape) + 1e-3
    assert health.effective_rank(100 * x) == pytest.approx(found, rel=1e-5)


def test_effective_rank_of_directions_of_one_length_is_their_number():
    assert health.effective_rank(np.eye(12)[:, :9]) == pytest.approx(9, 1e-5)
    assert health.effective_rank(np.ones((12, 9))) == pytest.approx(1, 1e-4)
    assert math.isfinite(health.effective_rank(np.zeros((12, 9))))


@pytest.mark.parametrize("dim", [2, 3, 8, 128])
def test_the_limit_of_uniformity_is_the_integral(dim):
    """Over the angle of two random vectors, of density sin^(dim - 2)."""
    angles = (np.arange(200_000) + 0.5) / 200_000 * np.pi
    density = np.sin(angles) ** (dim - 2)
    mean = (density * np.exp(-4 + 4 * np.cos(angles))).sum() / density.sum()
    expected = np.log(mean)
    assert health.uniformity_limit(dim) == pytest.approx(expected, rel=1e-6)


def test_many_random_vectors_reach_the_limit_of_uniformity(rng):
    x = reference.unit_rows(rng, 2000, 16)
    limit = health.uniformity_limit(16)
    assert health.uniformity(x) == pytest.approx(limit, abs=0.01)


def test_quantiles_are_named_by_percents():
    found = health.quantiles(np.arange(101.0).reshape(1, 101))
    assert found == {"05": 5, "50": 50, "95": 95}


def test_relative_distance_is_that_of_all_weights_together():
    weights = [np.array([[3.0]]), np.array([0.0, 4.0])]
    others = [np.array([[3.0]]), np.array([3.0, 8.0])]
    assert health.relative_distance(weights, others) == pytest.approx(1)
    assert health.relative_distance(weights, weights) == 0
    assert health.relative_distance([np.zeros(2)], [np.zeros(2)]) == 0


def test_share_of_class_is_that_of_all_pairs(rng):
    labels, others = rng.integers(-1, 4, 30), rng.integers(-1, 4, 50)
    pairs = [(a, b) for a in labels for b in others if a >= 0 and b >= 0]
    expected = np.mean([a == b for a, b in pairs])
    found = health.share_of_class(labels, others)
    assert found == pytest.approx(expected)
    balanced = np.arange(100) % 10
    assert health.share_of_class(balanced, balanced) == pytest.approx(0.1)
    # A class that the others lack.
    assert health.share_of_class(np.array([7]), np.array([1, 2])) == 0


def test_copies_are_counted_once_each(images):
    assert health.share_of_copies(images) == 0
    twice = np.concatenate([images, images])
    assert health.share_of_copies(twice) == 0.5
    assert health.share_of_copies(np.repeat(images[:1], 10, 0)) == 0.9
    # One level of one pixel is enough to be another image.
    other = images[:1].copy()
    other[0, 0, 0, 0] ^= 1
    assert health.share_of_copies(np.concatenate([images[:1], other])) == 0


def test_blank_images_have_one_color(images, rng):
    colors = rng.integers(0, 240, (4, 1, 1, 3), "uint8")
    blank = np.broadcast_to(colors, (4, 8, 8, 3)).copy()
    blank += rng.integers(0, 9, blank.shape, "uint8")  # as JPEG leaves it
    assert health.share_of_blank(np.concatenate([images[:12], blank])) == 0.25
    # A gray ramp is an image.
    ramp = np.zeros((1, 8, 8, 3), "uint8")
    ramp[0] = np.arange(8)[:, None, None] * 30
    assert health.share_of_blank(ramp) == 0
