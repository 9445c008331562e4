"""The queue of keys: MoCo's dictionary of negatives."""

import keras
import tensorflow as tf
from keras import ops

from moco_keras import arguments, step_errors


@keras.saving.register_keras_serializable(package="moco_keras")
class KeyQueue(keras.layers.Layer):
    """The newest `size` keys, overwritten in place, first in, first out.

    It starts full of random directions, as the paper's code does, so the first
    steps find their key almost always: random negatives are easy.

    Args:
        size: number of keys held, K of the paper. Any positive integer; batches
            need not divide it, since writes wrap around.
        dim: length of a key, C of the paper.
        seed: integer that fixes the first random keys, or None.

    Attributes:
        keys: float32 (K, C), each row of length 1.
        pointer: int64 scalar, the row that is written next, which is also the
            oldest.

    Raises:
        ValueError: if `size` or `dim` is not a positive integer.

    Reference:
        Section 3.2 of [He et al., 2020](https://arxiv.org/abs/1911.05722).
    """

    def __init__(self, size, dim, seed=None, **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs, "trainable": False})
        self.size = arguments.whole(size=size)
        self.dim = arguments.whole(dim=dim)
        self.seed = arguments.seed(seed)
        self.build()

    def build(self, input_shape=None):
        self.keys = self.add_weight(
            shape=(self.size, self.dim),
            initializer=self._random_keys,
            dtype="float32",  # whatever the policy
            autocast=False,
            trainable=False,
            name="keys",
        )
        self.pointer = self.add_weight(
            shape=(),
            initializer="zeros",
            dtype="int64",  # a GPU keeps int32 variables on the host
            trainable=False,
            name="pointer",
        )
        self.built = True

    def _random_keys(self, shape, dtype):
        keys = keras.random.normal(shape, dtype=dtype, seed=self.seed)
        return ops.normalize(keys, axis=1)

    def enqueue(self, keys):
        """Overwrites the oldest keys.

        Args:
            keys: float32 (N, C) with N at most `size`.

        Raises:
            ValueError: if N is known to be larger than `size`; an
                InvalidArgumentError where N is known only when it runs.
        """
        num_keys = keys.shape[0]
        if num_keys is None:
            num_keys = tf.shape(keys, "int64")[0]
            # XLA drops assertions, but refuses a slice that is too long.
            rows = tf.range(self.size, dtype="int64")
            rows = tf.slice(rows, [0], [num_keys], step_errors.TOO_MANY_KEYS)
        elif num_keys > self.size:
            raise ValueError(
                "`queue_size` must hold the keys of a whole step, or they "
                f"would overwrite each other. Received: queue_size={self.size}"
                f", keys of one step={num_keys}. Raise `queue_size` or use "
                "smaller batches."
            )
        else:
            rows = tf.range(num_keys, dtype="int64")
        rows = (self.pointer + rows) % self.size
        # `keras.ops.scatter_update` would write a new K x C array each step.
        self.keys.value.scatter_update(tf.IndexedSlices(keys, rows))
        self.pointer.assign((self.pointer + num_keys) % self.size)

    def get_config(self):
        own = {"size": self.size, "dim": self.dim, "seed": self.seed}
        return {**super().get_config(), **own}
