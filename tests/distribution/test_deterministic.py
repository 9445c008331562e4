import re

import deterministic
import gpu
import numpy as np
import pytest


@pytest.mark.slow
def test_deterministic_operations_train_the_same(capfd):
    """A second run and a resumed one end like the first, in `make gpu`, too."""
    check = gpu.CHECKS["determinism"]
    # A CPU needs one kind: its views and head include those of the other.
    settings = {**check.settings, "depth": "shallow", "kinds": ["moco_v2"]}
    check = check._replace(settings=settings)
    rows = gpu.rows_of("determinism", check, seconds=250)
    assert len(rows) == 2, capfd.readouterr()
    for row in rows:
        differ, arrays = map(int, re.findall(r"\d+", row.value))
        assert (differ, row.passed) == (0, True) and arrays > 75, row


def test_different_arrays_are_counted():
    arrays = [np.zeros(3), np.ones(())]
    others = [np.array([0, 0, 1e-45]), np.ones(())]
    assert deterministic.count_different(arrays, arrays) == 0
    assert deterministic.count_different(arrays, others) == 1
