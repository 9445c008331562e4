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


def test_unit_rows_flattens_and_survives_black_images():
    images = np.zeros((2, 3, 3, 3), "uint8")
    images[1] = 5
    rows = features.unit_rows(images)
    assert rows.shape == (2, 27)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [0, 1], rtol=1e-6)
