import collections

import keras
import numpy as np
import pytest

from moco_keras import KeyQueue


@pytest.mark.parametrize("size", [5, 6, 12])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5])
def test_queue_is_a_deque(size, batch, rng):
    queue = KeyQueue(size=size, dim=3)
    deque = collections.deque(queue.keys.numpy(), maxlen=size)
    for _ in range(7):
        keys = rng.normal(size=(batch, 3)).astype("float32")
        queue.enqueue(keras.ops.convert_to_tensor(keys))
        deque.extend(keys)
        oldest = int(queue.pointer)
        in_order = np.roll(queue.keys.numpy(), -oldest, axis=0)
        np.testing.assert_array_equal(in_order, np.array(deque))


def test_it_starts_with_random_keys_of_length_one():
    keys = KeyQueue(size=500, dim=16).keys.numpy()
    np.testing.assert_allclose(np.linalg.norm(keys, axis=1), 1, rtol=1e-5)
    # Directions are uniform: each coordinate has variance 1 / dim.
    np.testing.assert_allclose(keys.var(axis=0), 1 / 16, rtol=0.3)
    assert int(KeyQueue(size=500, dim=16).pointer) == 0


def test_more_keys_than_rows_are_refused():
    queue = KeyQueue(size=4, dim=2)
    with pytest.raises(ValueError, match=r"queue_size=4, keys of one step=5"):
        queue.enqueue(keras.ops.ones((5, 2)))


@pytest.mark.parametrize("size", [0, -3, 2.5])
def test_size_must_be_a_positive_integer(size):
    with pytest.raises(ValueError, match=f"positive integer.*size={size}"):
        KeyQueue(size=size, dim=2)
