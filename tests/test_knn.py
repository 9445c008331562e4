import numpy as np
import pytest
import reference

from moco_keras import features, knn


@pytest.mark.parametrize("k", [1, 5, 40])
def test_vote_is_the_weighted_one(k, rng):
    bank, queries = reference.unit_rows(rng, 40), reference.unit_rows(rng, 25)
    labels = rng.integers(0, 4, 40)
    expected = reference.knn(bank, labels, queries, k, temperature=0.1)
    predicted = knn.predict(bank, labels, queries, k, temperature=0.1)
    np.testing.assert_array_equal(predicted, expected)
    truth = rng.integers(0, 4, 25)
    accuracy = knn.accuracy(bank, labels, queries, truth, k)
    assert accuracy == pytest.approx(np.mean(expected == truth))


def test_neighbours_come_nearest_first(rng):
    bank, queries = reference.unit_rows(rng, 3000), reference.unit_rows(rng, 5)
    similarities, rows = knn.nearest(bank, queries, 7)
    expected = np.argsort(-(queries @ bank.T), axis=1)[:, :7]
    np.testing.assert_array_equal(rows, expected)
    assert (np.diff(similarities, axis=1) <= 0).all()


@pytest.mark.parametrize("k", [0, 41])
def test_k_must_fit_the_bank(k, rng):
    bank = reference.unit_rows(rng, 40)
    with pytest.raises(ValueError, match=f"40 images. Received: k={k}"):
        knn.predict(bank, np.zeros(40, int), bank, k)


def test_of_equal_neighbours_the_earlier_rows_count():
    bank = np.tile(np.eye(3, dtype="float32"), (4, 1))
    similarities, rows = knn.nearest(bank, bank[:2], k=3)
    np.testing.assert_array_equal(rows, [[0, 3, 6], [1, 4, 7]])
    np.testing.assert_array_equal(similarities, 1)


def test_of_labels_with_equal_votes_the_smallest_wins():
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
    # Nor do labels that the bank does not have count as right.
    assert knn.accuracy(bank, labels, queries, np.full(25, 9), k=9) == 0


def test_at_a_low_temperature_the_nearest_decides(rng):
    bank, queries = reference.unit_rows(rng, 40), reference.unit_rows(rng, 25)
    labels = rng.integers(0, 4, 40)
    with np.errstate(over="raise"):
        predicted = knn.predict(bank, labels, queries, 9, temperature=1e-4)
    nearest = np.argmax(queries @ bank.T, axis=1)
    np.testing.assert_array_equal(predicted, labels[nearest])


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, -1], [[0], [1], [2]]])
def test_labels_must_fit_the_bank(labels, rng):
    bank = reference.unit_rows(rng, 3)
    with pytest.raises(ValueError, match="bank's 3 images. Received: shape="):
        knn.predict(bank, labels, bank, k=1)


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
