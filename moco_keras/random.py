"""Random numbers that are the same everywhere, by integer operations alone.

TensorFlow's own depend on whether XLA compiles the step, which Keras decides by
the devices: two GPUs would train on other views than one. The numbers here are
the same for both.

A key is an integer tensor (2,), such as the state of a
`keras.random.SeedGenerator`. Only the low 32 bits of its values count.
"""

import tensorflow as tf

# Bits by which each of eight rounds rotates, and the constant of the key.
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry(key, counter):
    """Two random words for each counter: Threefry-2x32 with 20 rounds.

    Args:
        key: pair of uint32 scalars.
        counter: pair of uint32 tensors of one shape.

    Returns:
        A pair of uint32 tensors of that shape.

    Reference:
        Section 4.2 of [Salmon et al., 2011](https://doi.org/10.1145/2063384.2063405).
    """
    keys = (*key, key[0] ^ key[1] ^ tf.constant(_PARITY, "uint32"))
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for four_rounds in range(5):
        for bits in _ROTATIONS[four_rounds % 2]:
            x += y
            y = x ^ _rotated_left(y, bits)
        injection = four_rounds + 1
        x += keys[injection % 3]
        y += keys[(injection + 1) % 3] + tf.constant(injection, "uint32")
    return x, y


def _rotated_left(x, bits):
    left = tf.bitwise.left_shift(x, tf.constant(bits, "uint32"))
    right = tf.bitwise.right_shift(x, tf.constant(32 - bits, "uint32"))
    return left | right


# Purposes of a seed. They differ from the states of `SeedGenerator`s with the
# same seed, which count from 0.
_PURPOSES = {"order": 2**32 - 1, "views": 2**32 - 2, "evaluation": 2**32 - 3}


def key(seed, purpose, number):
    """Makes the key of one purpose and number from a seed.

    Args:
        seed: int scalar.
        purpose: "order" of images in a pass, "views" that are cut while
            images are read, or those of "evaluation".
        number: int scalar, of the pass or of the random layer.

    Returns:
        int64 (2,).
    """
    return fold_in((seed, _PURPOSES[purpose]), number)


def fold_in(key, number):
    """Derives another key for each number.

    Args:
        key: int (2,).
        number: int scalar.

    Returns:
        int64 (2,), a key.
    """
    low = tf.cast(number, "int64")
    high = tf.bitwise.right_shift(low, tf.constant(32, "int64"))
    counter = tf.cast(low, "uint32"), tf.cast(high, "uint32")
    return tf.cast(tf.stack(threefry(_words(key), counter)), "int64")


def uniform(key, count, numbers):
    """Draws from [0, 1) for numbered things, such as the images of a batch.

    The draws of a number depend on the key and on the number alone, not on the
    others.

    Args:
        key: int (2,).
        count: how many draws each gets, an int.
        numbers: int32 (N,).

    Returns:
        float32 (count, N), multiples of 2^-24.
    """
    return _uniform(tf.cast(key, "int64"), count, numbers)


# As one kernel: a hundred operations take longer to start than to run.
@tf.function(jit_compile=True)
def _uniform(key, count, numbers):
    words = _random_words(key, -(-count // 2), numbers)[:count]
    # Only the bits that float32 holds exactly.
    bits = tf.bitwise.right_shift(words, tf.constant(8, "uint32"))
    return tf.cast(tf.cast(bits, "int32"), "float32") * 2.0**-24


def permutation(key, count):
    """Puts the numbers below `count` into random order.

    Args:
        key: int (2,).
        count: an int, or an int32 scalar.

    Returns:
        int64 (count,).
    """
    words = _one_word_each(tf.cast(key, "int64"), tf.range(count))
    # Equal words stay in their order, on every device.
    return tf.cast(tf.math.top_k(words, k=count).indices, "int64")


@tf.function(jit_compile=True)
def _one_word_each(key, numbers):
    return _random_words(key, 1, numbers)[0]


def _random_words(key, pairs, numbers):
    """uint32 (2 pairs, N)."""
    rows = tf.cast(tf.range(pairs), "uint32")[:, None]
    columns = tf.cast(numbers, "uint32")[None]
    counter = (
        rows + tf.zeros_like(columns),
        columns + tf.zeros_like(rows),
    )
    return tf.concat(threefry(_words(key), counter), axis=0)


def _words(key):
    return tf.unstack(tf.cast(key, "uint32"))
