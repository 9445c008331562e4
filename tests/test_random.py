import itertools

import numpy as np
import pytest
import reference
import replicas
import tensorflow as tf

from moco_keras import distribution, random

# Counter, key and result of threefry2x32 with 20 rounds, from the file
# tests/kat_vectors of the authors' library, Random123 1.14.
PUBLISHED = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x1CB996FC, 0xBB002BE7),
    ),
    (
        (0x243F6A88, 0x85A308D3),
        (0x13198A2E, 0x03707344),
        (0xC4923A9C, 0x483DF7A0),
    ),
]
KEY = (7, 2**32 - 5)


def uint32(values):
    return tf.unstack(tf.constant(values, "uint32"))


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED)
def test_words_are_the_published_ones(counter, key, expected, jit_compile):
    threefry = tf.function(random.threefry, jit_compile=jit_compile)
    words = threefry(uint32(key), uint32(counter))
    assert [int(word) for word in words] == list(expected)
    assert reference.threefry(key, counter) == list(expected)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_uniform_is_made_of_words(count):
    """The first words of all pairs, then the second ones."""
    numbers = [0, 5, 1_000_000]
    pairs = range(-(-count // 2))
    expected = [
        [reference.threefry(KEY, (pair, n))[word] >> 8 for n in numbers]
        for word in range(2)
        for pair in pairs
    ]
    draws = random.uniform(KEY, count, tf.constant(numbers)).numpy()
    assert draws.dtype == np.float32
    np.testing.assert_array_equal(draws, np.array(expected)[:count] / 2**24)


def test_uniform_is_uniform():
    """Draws, numbers and keys are uncorrelated, too."""
    draws = random.uniform((1, 1), 4, tf.range(10_000)).numpy()
    even = (np.arange(10_000) + 0.5) / 10_000
    for row in draws:
        assert reference.kolmogorov_smirnov(row, even) < 1
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 0.04
    assert abs(np.corrcoef(draws[0, 1:], draws[0, :-1])[0, 1]) < 0.04
    other = random.uniform((1, 2), 4, tf.range(10_000)).numpy()
    assert abs(np.corrcoef(draws[0], other[0])[0, 1]) < 0.04


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_a_permutation_sorts_words(count):
    words = [reference.threefry(KEY, (0, n))[0] for n in range(count)]
    expected = sorted(range(count), key=lambda n: (-words[n], n))
    for jit_compile in (False, True):
        permutation = tf.function(
            lambda: random.permutation(KEY, count), jit_compile=jit_compile
        )
        np.testing.assert_array_equal(permutation(), expected)


def test_equal_words_stay_in_their_order(monkeypatch):
    monkeypatch.setattr(
        random, "_one_word_each", lambda key, n: tf.cast(n // 3, "uint32")
    )
    for jit_compile in (False, True):
        permutation = tf.function(
            lambda: random.permutation(KEY, 7), jit_compile=jit_compile
        )
        assert permutation().numpy().tolist() == [6, 3, 4, 5, 0, 1, 2]


def test_permutations_are_equally_likely():
    orders = [
        tuple(random.permutation((3, step), 4).numpy()) for step in range(2400)
    ]
    counts = [orders.count(order) for order in itertools.permutations(range(4))]
    assert sum(counts) == 2400
    # 49.7 is the critical value of 23 degrees of freedom at 0.001.
    assert sum((n - 100) ** 2 / 100 for n in counts) < 49.7


def test_keys_are_folded_in():
    for number in (0, 3, 2**40 + 1):
        low, high = number % 2**32, number >> 32
        np.testing.assert_array_equal(
            random.fold_in(KEY, tf.constant(number, "int64")),
            reference.threefry(KEY, (low, high)),
        )


def test_purposes_do_not_share_keys():
    numbers = range(20)
    keys = [
        tuple(random.key(7, purpose, n).numpy())
        for purpose in random._PURPOSES
        for n in numbers
    ]
    states = [(7, n) for n in numbers]  # of a `SeedGenerator` of that seed
    kinds = 1 + len(random._PURPOSES)
    assert len({*keys, *states}) == kinds * len(numbers)


def test_layers_draw_the_same_with_xla():
    """Parameters of views and the order of shuffling; see `replicas.drawn`."""
    strategy = distribution.strategy("none")
    plain, compiled = (
        replicas.drawn(strategy, jit_compile) for jit_compile in (False, True)
    )
    assert len(plain) == 3 * 16
    for name, value in plain.items():
        np.testing.assert_allclose(
            compiled[name], value, rtol=0, atol=1e-6, err_msg=name
        )
