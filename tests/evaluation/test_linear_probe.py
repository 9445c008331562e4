import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from moco_keras.evaluation import linear_probe


def clusters(rng, count, num_classes=3, dim=12, spread=0.4):
    """Rows of length 1 around one direction a class, and their labels."""
    labels = rng.permutation(np.arange(count) % num_classes)
    centers = rng.normal(size=(num_classes, dim)) / dim**0.5
    rows = centers[labels] + spread * rng.normal(size=(count, dim)) / dim**0.5
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype("float32"), labels


def gradient(regression, rows, labels):
    """Of |W|^2 / 2 + C sum_n cross_entropy(W f_n + b, label_n), over C N."""
    W, b, C = regression.coef_, regression.intercept_, regression.C
    by_W, by_b = W / C, np.zeros(len(b))
    for row, label in zip(rows.astype("float64"), labels, strict=True):
        logits = W @ row + b
        if len(b) == 1:
            logits = np.append(0, logits)
        p = np.exp(logits - logits.max())
        p /= p.sum()
        p[np.searchsorted(regression.classes_, label)] -= 1
        p = p[-len(b) :]
        by_W, by_b = by_W + np.outer(p, row), by_b + p
    return np.append(by_W, by_b) / len(rows)


DATA = {
    "separable": {"spread": 0.1},
    "overlapping": {"spread": 1.5},
    "random": {"spread": 100.0},
    "two classes": {"num_classes": 2},
    "two separable classes": {"num_classes": 2, "spread": 0.1},
    "more dimensions than images": {"dim": 100, "num_classes": 5},
}


@pytest.mark.parametrize("C", [1e-6, 1.0, 1e5])
@pytest.mark.parametrize("data", DATA)
def test_the_optimum_is_found(data, C, rng):
    rows, labels = clusters(rng, 60, **DATA[data])
    regression = linear_probe.fit(rows, labels, C)
    assert regression.C == C
    assert np.linalg.norm(gradient(regression, rows, labels)) < 1e-5


@pytest.mark.parametrize("C", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("data", DATA)
def test_the_result_is_scikit_learns(data, C, rng):
    rows, labels = clusters(rng, 60, **DATA[data])
    expected = LogisticRegression(C=C, tol=1e-8, max_iter=10_000)
    expected.fit(rows.astype("float64"), labels)
    regression = linear_probe.fit(rows, labels, C)
    for name in ("coef_", "intercept_"):
        np.testing.assert_allclose(
            getattr(regression, name), getattr(expected, name), atol=2e-3
        )
    np.testing.assert_allclose(
        regression.predict_proba(rows),
        expected.predict_proba(rows),
        atol=1e-3,
    )
    np.testing.assert_array_equal(regression.classes_, expected.classes_)


@pytest.mark.parametrize("C", [1e-9, 1e9])
@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        (np.eye(3), [0, 1, 2]),
        (np.eye(2), [0, 1]),
        (np.ones((4, 2)), [0, 1, 0, 1]),
        (np.zeros((4, 2)), [0, 1, 2, 0]),
        ([[1.0], [-1.0], [1.0]], [0, 1, 1]),
    ],
)
def test_extremes_converge(rows, labels, C):
    rows = np.array(rows, "float32")
    regression = linear_probe.fit(rows, labels, C)
    assert np.linalg.norm(gradient(regression, rows, labels)) < 1e-5


def chosen_in_a_loop(rows, labels, held_out, grid):
    best = (-1, -np.inf), None
    for C in grid:
        regression = LogisticRegression(C=C, tol=1e-8, max_iter=100_000)
        regression.fit(rows[~held_out], labels[~held_out])
        right, log_likelihood = 0, 0.0
        for row, label in zip(rows[held_out], labels[held_out], strict=True):
            right += regression.predict(row[None])[0] == label
            p = regression.predict_proba(row[None])[0]
            log_likelihood += np.log(p[list(regression.classes_).index(label)])
        best = max(best, ((right, log_likelihood), C), key=lambda x: x[0])
    return best[1]


@pytest.mark.parametrize("data", ["overlapping", "two classes"])
@pytest.mark.parametrize("seed", [0, 7])
def test_c_is_that_of_a_plain_loop(data, seed, rng, monkeypatch):
    monkeypatch.setattr(linear_probe, "GRID", linear_probe.GRID[8:36:3])
    rows, labels = clusters(rng, 90, **DATA[data])
    labels = np.array([2, 5, 9])[labels]
    held_out = linear_probe._held_out(labels, np.random.default_rng(seed))
    expected = chosen_in_a_loop(
        rows.astype("float64"), labels, held_out, linear_probe.GRID
    )
    regression = linear_probe.fit(rows, labels, seed=seed)
    assert regression.C == expected
    again = linear_probe.fit(rows, labels, expected)
    np.testing.assert_array_equal(regression.coef_, again.coef_)


def test_among_equal_accuracies_the_lowest_loss_wins(rng):
    """Which falls with C where all is separable."""
    rows, labels = clusters(rng, 60, spread=0.01)
    assert linear_probe.fit(rows, labels).C == pytest.approx(1e5)


def test_the_grid_is_dinov2s():
    assert len(linear_probe.GRID) == 45
    assert linear_probe.GRID[0] == 1e-6
    assert linear_probe.GRID[-1] == 1e5
    ratios = np.divide(linear_probe.GRID[1:], linear_probe.GRID[:-1])
    np.testing.assert_allclose(ratios, 10 ** (11 / 44))


def test_a_tenth_of_each_class_is_held_out(rng):
    counts = {0: 1, 1: 2, 3: 9, 4: 10, 5: 19, 8: 20, 9: 57}
    labels = rng.permutation(np.repeat([*counts], [*counts.values()]))
    held_out = linear_probe._held_out(labels, rng)
    found = {k: np.sum(labels[held_out] == k) for k in counts}
    assert found == {0: 0, 1: 1, 3: 1, 4: 1, 5: 1, 8: 2, 9: 5}
    other = linear_probe._held_out(labels, rng)
    assert not np.array_equal(other, held_out)


def test_without_anything_to_hold_out_c_is_100(rng):
    rows, labels = clusters(rng, 4, num_classes=4)
    assert linear_probe.fit(rows, labels).C == 100


def test_two_fits_are_equal_to_the_bit(rng):
    rows, labels = clusters(rng, 70)
    first, second = (linear_probe.fit(rows, labels) for _ in range(2))
    assert first.C == second.C
    np.testing.assert_array_equal(first.coef_, second.coef_)
    np.testing.assert_array_equal(first.intercept_, second.intercept_)


def test_features_of_any_length_shape_and_precision(rng):
    rows, labels = clusters(rng, 70)
    expected = linear_probe.fit(rows, labels)
    lengths = 10.0 ** rng.uniform(-3, 3, (70, 1))
    long = linear_probe.fit(rows * lengths, labels[:, None])
    assert long.C == expected.C
    np.testing.assert_allclose(long.coef_, expected.coef_, rtol=1e-2, atol=1e-2)
    half = rows.reshape(70, 2, 2, 3).astype("float16")
    flat = half.reshape(70, 12).astype("float32")
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_allclose(
        linear_probe.fit(half, labels, 1.0).coef_,
        linear_probe.fit(flat, labels, 1.0).coef_,
        atol=1e-5,
    )


def test_accuracy_counts_what_is_right(rng):
    rows, labels = clusters(rng, 90, spread=1.0)
    labels[0] = 7  # the bank lacks it, so it is wrong
    bank, queries = slice(30, None), slice(30)
    expected = LogisticRegression(C=3.0, tol=1e-8, max_iter=1000)
    expected.fit(rows[bank], labels[bank])
    right = expected.predict(rows[queries]) == labels[queries]
    assert 0.5 < right.mean() < 1
    found = linear_probe.accuracy(
        5 * rows[bank],
        labels[bank],
        7 * rows[queries],
        labels[queries][:, None],
        C=3.0,
    )
    assert found == pytest.approx(right.mean())
    chosen = linear_probe.fit(rows[bank], labels[bank], seed=4).C
    assert linear_probe.accuracy(
        rows[bank], labels[bank], rows[queries], labels[queries], seed=4
    ) == linear_probe.accuracy(
        rows[bank], labels[bank], rows[queries], labels[queries], chosen
    )


def test_nothing_warns_of_few_labels(rng):
    """As scikit-learn does if more than half of the labels are classes."""
    rows, labels = clusters(rng, 12, num_classes=12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear_probe.fit(rows, labels)
        linear_probe.fit(np.tile(rows, (2, 1)), np.tile(labels, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.full(6, 3)}, "two classes or more.*all are 3"),
        ({"labels": np.arange(5)}, "`labels` must be one class number"),
        ({"labels": np.arange(6) - 1}, "Received: -1 among them"),
        ({"features": np.full((6, 2), np.nan)}, "6 rows of `features`"),
        ({"C": 0}, "`C` must be a number between 1e-9 and 1e9.*C=0"),
        ({"C": 1e10}, "`C` must be a number between 1e-9 and 1e9"),
        ({"seed": -1}, "`seed` must be an integer from 0 on.*seed=-1"),
    ],
)
def test_bad_input_is_refused(change, message, rng):
    given = {"features": rng.normal(size=(6, 2)), "labels": [0, 1, 2] * 2}
    with pytest.raises(ValueError, match=message):
        linear_probe.fit(**given | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": np.full((2, 2), np.inf)}, "2 rows of `queries`"),
        ({"labels": [0]}, "`labels` must be one class number"),
        ({"bank_labels": [0] * 6}, "two classes or more"),
    ],
)
def test_bad_queries_are_refused(change, message, rng):
    given = {
        "bank": rng.normal(size=(6, 2)),
        "bank_labels": [0, 1] * 3,
        "queries": np.ones((2, 2)),
        "labels": [0, 1],
    }
    with pytest.raises(ValueError, match=message):
        linear_probe.accuracy(**given | change)
