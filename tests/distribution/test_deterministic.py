import deterministic
import numpy as np
import pytest


@pytest.mark.slow
def test_deterministic_operations_train_the_same(tmp_path):
    """A second run and a resumed one end like the first."""
    results = deterministic.differences(tmp_path)
    assert results.keys() == deterministic.KINDS.keys()
    for kind, (arrays, second, resumed) in results.items():
        assert arrays > 200, kind
        assert (second, resumed) == (0, 0), kind


def test_different_arrays_are_counted():
    arrays = [np.zeros(3), np.ones(())]
    others = [np.array([0, 0, 1e-45]), np.ones(())]
    assert deterministic.count_different(arrays, arrays) == 0
    assert deterministic.count_different(arrays, others) == 1
