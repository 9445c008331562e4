import re

import numpy as np
import pytest
import reference

from moco_keras.evaluation import features, knn


@pytest.mark.parametrize("k", [1, 5, 40])
def test_votes_are_weighted(k, rng):
    bank, queries = reference.unit_rows(rng, 40), reference.unit_rows(rng, 25)
    labels = rng.integers(0, 4, 40)
    expected = reference.knn(bank, labels, queries, k, temperature=0.1)
    predicted = knn.predict(bank, labels, queries, k, temperature=0.1)
    np.testing.assert_array_equal(predicted, expected)
    truth = rng.integers(0, 4, 25)
    accuracy = knn.accuracy(bank, labels, queries, truth, k)
    assert accuracy == pytest.approx(np.mean(expected == truth))


def test_neighbors_come_nearest_first(rng):
    bank, queries = reference.unit_rows(rng, 3000), reference.unit_rows(rng, 5)
    similarities, rows = knn.nearest(bank, queries, 7)
    expected = np.argsort(-(queries @ bank.T), axis=1)[:, :7]
    np.testing.assert_array_equal(rows, expected)
    assert (np.diff(similarities, axis=1) <= 0).all()


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (41, "40 images. Received: k=41"),
        (0, "positive integer.*Received: k=0"),
        (2.5, "positive integer.*Received: k=2.5"),
    ],
)
def test_k_must_fit_the_bank(k, message, rng):
    bank = reference.unit_rows(rng, 40)
    with pytest.raises(ValueError, match=message):
        knn.predict(bank, np.zeros(40, int), bank, k)


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_the_temperature_must_be_positive(temperature, rng):
    bank = reference.unit_rows(rng, 4)
    with pytest.raises(ValueError, match=f"temperature={temperature}"):
        knn.predict(bank, [0, 1, 0, 1], bank, 2, temperature)


@pytest.mark.parametrize(
    ("counts", "k"), [([3, 5], 3), ([1, 500], 1), ([300, 201], 200)]
)
def test_default_k_follows_the_smallest_class(counts, k, rng):
    labels = 2 * np.repeat([0, 1], counts)  # class 1 has none
    assert knn.default_k(labels) == k
    bank, queries = (reference.unit_rows(rng, n) for n in (sum(counts), 9))
    np.testing.assert_array_equal(
        knn.predict(bank, labels, queries),
        reference.knn(bank, labels, queries, k, temperature=0.1),
    )


def test_lengths_of_rows_do_not_matter(rng):
    """An export may return features that are not normalized."""
    bank, queries = reference.unit_rows(rng, 40), reference.unit_rows(rng, 25)
    labels, truth = rng.integers(0, 4, 40), rng.integers(0, 4, 25)
    lengths = 10.0 ** rng.uniform(-25, 25, (65, 1))
    long_bank = (bank * lengths[:40]).astype("float32")
    long_queries = (queries * lengths[40:]).astype("float32")
    similarities, rows = knn.nearest(long_bank, long_queries, k=5)
    expected, expected_rows = knn.nearest(bank, queries, k=5)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(similarities, expected, atol=1e-5)
    expected = np.mean(reference.knn(bank, labels, queries, 5, 0.1) == truth)
    found = knn.accuracy(long_bank, labels, long_queries, truth, k=5)
    assert found == pytest.approx(expected)


def test_rows_of_zeros_have_similarity_0():
    bank = np.array([[0, 0], [3, 4], [-1, 0]], "float32")
    similarities, rows = knn.nearest(bank, bank[:2], k=3)
    np.testing.assert_array_equal(rows, [[0, 1, 2], [1, 0, 2]])
    np.testing.assert_allclose(similarities, [[0, 0, 0], [1, 0, -0.6]])


def test_ties_between_neighbors_go_to_the_earlier_rows():
    bank = np.tile(np.eye(3, dtype="float32"), (4, 1))
    similarities, rows = knn.nearest(bank, bank[:2], k=3)
    np.testing.assert_array_equal(rows, [[0, 3, 6], [1, 4, 7]])
    np.testing.assert_array_equal(similarities, 1)


def test_ties_between_labels_go_to_the_smallest():
    bank = np.eye(4, dtype="float32")
    labels = np.array([3, 2, 5, 1])
    query = np.full((1, 4), 0.5, "float32")
    assert knn.predict(bank, labels, query, k=4) == [1]
    assert knn.predict(bank, labels, query, k=3) == [2]


def test_classes_without_images_are_never_predicted(rng):
    bank, queries = reference.unit_rows(rng, 40), reference.unit_rows(rng, 25)
    labels = rng.choice([2, 7], 40)
    predicted = knn.predict(bank, labels, queries, k=9)
    expected = reference.knn(bank, labels, queries, 9, temperature=0.1)
    np.testing.assert_array_equal(predicted, expected)
    # Nor are labels right that the bank lacks.
    assert knn.accuracy(bank, labels, queries, np.full(25, 9), k=9) == 0


def test_at_a_low_temperature_the_nearest_decides(rng):
    bank, queries = reference.unit_rows(rng, 40), reference.unit_rows(rng, 25)
    labels = rng.integers(0, 4, 40)
    with np.errstate(over="raise"):
        predicted = knn.predict(bank, labels, queries, 9, temperature=1e-4)
    nearest = np.argmax(queries @ bank.T, axis=1)
    np.testing.assert_array_equal(predicted, labels[nearest])


@pytest.mark.parametrize("kind", ["int64", "uint8", "float32"])
@pytest.mark.parametrize("columns", [(), (1,)])
def test_labels_of_any_dtype_and_in_columns(kind, columns, rng):
    bank = reference.unit_rows(rng, 6)
    labels = np.array([0, 1, 2, 0, 1, 2])
    given = labels.astype(kind).reshape(6, *columns)
    predicted = knn.predict(bank, given, bank, k=1)
    np.testing.assert_array_equal(predicted, labels)
    assert predicted.dtype == np.int64
    assert knn.accuracy(bank, labels, bank, given, k=1) == 1
    assert knn.accuracy(bank, given, bank, (labels + 1) % 3, k=1) == 0


BAD_LABELS = [
    ([0, 1], "each of the 3 images. Received: shape=(2,)"),
    ([0, 1, -1], "Received: -1 among them. Leave unlabeled"),
    ([0, 1, 0.5], "Received: 0.5 among them, of dtype=float64. Give each"),
    ([0, 1, np.nan], "Received: nan among them"),
    ([0, np.inf, 1], "Received: inf among them"),
    (["a", "b", "c"], "Received: a among them"),
    (np.eye(3), "shape=(3, 3). Pass `np.argmax({}, axis=1)`"),
    (3, "Received: shape=()"),
]


@pytest.mark.parametrize(("labels", "message"), BAD_LABELS)
def test_labels_must_be_class_numbers(labels, message, rng):
    bank = reference.unit_rows(rng, 3)
    for name in ("bank_labels", "labels"):
        both = {"bank_labels": [0, 1, 2], "labels": [0, 1, 2], name: labels}
        expected = f"`{name}` must be .*{re.escape(message.format(name))}"
        with pytest.raises(ValueError, match=expected):
            knn.accuracy(bank, both["bank_labels"], bank, both["labels"], 1)


def test_features_must_be_finite(rng):
    bank = reference.unit_rows(rng, 3)
    broken = bank.copy()
    broken[1, 0] = np.nan
    with pytest.raises(ValueError, match="1 rows of `queries`.*diverged"):
        knn.nearest(bank, broken, k=1)


def test_unit_rows_flattens_and_survives_black_images():
    images = np.zeros((2, 3, 3, 3), "uint8")
    images[1] = 5
    rows = features.unit_rows(images)
    assert rows.shape == (2, 27)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [0, 1], rtol=1e-6)
