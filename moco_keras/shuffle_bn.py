"""Batch norm that cannot tell which key belongs to which query."""

import contextlib

import keras
import tensorflow as tf
from keras import ops

from moco_keras import arguments, distribution, random, step_errors


def shuffle(images, seed, across_replicas=True):
    """Puts a batch in random order, the batch of all replicas or of each.

    Args:
        images: (N, H, W, 3), any dtype, the replica's part of the batch.
        seed: a `keras.random.SeedGenerator`, in the same state on each replica.
        across_replicas: whether replicas exchange images.

    Returns:
        The images that the replica gets to encode, (N, H, W, 3), and the order
        that `unshuffle` takes, int64, of (N x replicas,) or (N,).

    Reference:
        Section 3.3 of [He et al., 2020](https://arxiv.org/abs/1911.05722).
    """
    if across_replicas:
        images = distribution.all_gather(images)
    order = random.permutation(seed.next(), ops.shape(images)[0])
    own = distribution.replica_slice(order) if across_replicas else order
    return tf.gather(images, own), order


def unshuffle(keys, order):
    """Undoes `shuffle`: row n of the result belongs to image n again.

    Args:
        keys: (N x replicas, C) or (N, C), of the images that were shuffled.
        order: what `shuffle` returned.
    """
    return tf.gather(keys, tf.argsort(order))


@keras.saving.register_keras_serializable(package="moco_keras")
class SplitBatchNormalization(keras.layers.Layer):
    """Batch norm over `splits` groups of the batch, as many devices would do.

    Each group of N / splits neighbours is normalized by its own mean and
    variance; the moving statistics follow the mean over groups, with unbiased
    variances, as PyTorch's do. `splits=1` is ordinary batch norm. The paper's
    notebook puts sample n in group n mod splits; neighbours need no transposed
    copy, and in a shuffled batch they are as good.

    It computes with TensorFlow's fused kernels, in training and in inference,
    with float32 statistics under mixed precision. What follows a batch norm in
    a ResNet, the addition of the shortcut and the ReLU, it can do as well, and
    does to each group while the group is in the processor's cache.

    Args:
        splits: number of groups; it must divide the batch in training.
        momentum: share of the moving statistics that a step keeps.
        epsilon: added to the variance.
        activation: name or function that is applied last, or None.
        synchronized: whether the batch is that of all replicas, and not the
            replica's own; for `splits=1`.

    Call arguments:
        inputs: float (N, H, W, C).
        shortcut: float (N, H, W, C) that is added to what was normalized, or
            None.
        training: normalize by the batch (True) or by the moving statistics.

    Raises:
        ValueError: if `splits` does not divide a batch of known size, with an
            InvalidArgumentError where the size is known only when it runs; if
            it is to synchronize splits.

    Reference:
        Section 3.3 of [He et al., 2020](https://arxiv.org/abs/1911.05722).
    """

    def __init__(
        self,
        splits=1,
        momentum=0.9,
        epsilon=1e-5,
        activation=None,
        synchronized=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if self.compute_dtype == "float64":
            raise ValueError(
                "`dtype` of SplitBatchNormalization must be float32 or shorter,"
                " because TensorFlow has no other fused kernels. Received: "
                f"dtype={self.dtype_policy.name}."
            )
        self.splits = arguments.whole(splits=splits)
        if synchronized and self.splits > 1:
            raise ValueError(
                "`splits` must be 1 where batch norm is synchronized, which "
                f"takes all replicas' images together. Received: {splits}."
            )
        self.synchronized = synchronized
        self.momentum = arguments.real(arguments.FRACTION, momentum=momentum)
        self.epsilon = arguments.real(arguments.POSITIVE, epsilon=epsilon)
        self.activation = keras.activations.get(activation)
        self._group_statistics = None  # see `single_group_calls`

    def build(self, inputs_shape, shortcut_shape=None):
        def weight(name, initializer, trainable):
            return self.add_weight(
                shape=(inputs_shape[-1],),
                initializer=initializer,
                trainable=trainable,
                dtype="float32",
                autocast=False,
                name=name,
            )

        self.gamma = weight("gamma", "ones", True)
        self.beta = weight("beta", "zeros", True)
        self.moving_mean = weight("moving_mean", "zeros", False)
        self.moving_variance = weight("moving_variance", "ones", False)
        self.built = True

    def call(self, inputs, shortcut=None, training=False):
        # As everywhere in Keras, a frozen batch norm runs in inference mode.
        if not (training and self.trainable):
            outputs, _, _ = self._normalize(
                inputs, self.moving_mean, self.moving_variance, training=False
            )
            return self._add_and_activate(outputs, shortcut)
        if self.synchronized and distribution.num_replicas() > 1:
            normalized = [self._normalize_together(inputs)]
        else:
            normalized = [
                self._normalize(group, [], [], training=True)
                for group in self._split(inputs)
            ]
        statistics = [of_group[1:] for of_group in normalized]
        if self._group_statistics is None:
            self._update_moving_statistics(statistics)
        else:
            self._group_statistics += statistics
        shortcuts = (
            [None] * len(normalized)
            if shortcut is None
            else self._split(shortcut)
        )
        outputs = [
            self._add_and_activate(of_group[0], shortcut)
            for of_group, shortcut in zip(normalized, shortcuts, strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else tf.concat(outputs, axis=0)

    @contextlib.contextmanager
    def single_group_calls(self):
        """Takes each call as one group; moving statistics follow at the end."""
        self._group_statistics = []
        try:
            yield
            if self._group_statistics:  # a frozen layer has none
                self._update_moving_statistics(self._group_statistics)
        finally:
            self._group_statistics = None

    def _add_and_activate(self, outputs, shortcut):
        if shortcut is not None:
            outputs = outputs + shortcut
        return self.activation(outputs)

    def _split(self, inputs):
        if self.splits == 1 or self._group_statistics is not None:
            return [inputs]
        batch_size = inputs.shape[0]
        if batch_size is not None and batch_size % self.splits:
            raise ValueError(
                "`splits` of SplitBatchNormalization must divide the batch "
                f"size. Received: splits={self.splits}, "
                f"batch_size={batch_size}."
            )
        # A batch of unknown size fails when the split runs.
        return tf.split(
            inputs, self.splits, axis=0, name=step_errors.INDIVISIBLE
        )

    def _normalize(self, inputs, mean, variance, training):
        # The mean and the unbiased variance of the batch come back beside the
        # output. `tf.nn.batch_normalization` is many kernels where this is one.
        return tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma,
            offset=self.beta,
            mean=tf.convert_to_tensor(mean, "float32"),
            variance=tf.convert_to_tensor(variance, "float32"),
            epsilon=self.epsilon,
            exponential_avg_factor=1.0,
            is_training=training,
        )[:3]

    def _normalize_together(self, inputs):
        """As `_normalize` in training, by the images of all replicas."""
        x = tf.cast(inputs, "float32")
        axes = (0, 1, 2)
        # Statistics of each replica, (replicas, 2, C). The variance of all is
        # the mean of their variances plus the variance of their means.
        own = tf.stack(tf.nn.moments(x, axes))
        means, variances = tf.unstack(distribution.stack(own), axis=1)
        mean = tf.reduce_mean(means, axis=0)
        apart = tf.math.squared_difference(means, mean)
        variance = tf.reduce_mean(variances + apart, axis=0)
        outputs = tf.nn.batch_normalization(
            x, mean, variance, self.beta, self.gamma, self.epsilon
        )
        count = tf.size(x[..., 0]) * distribution.num_replicas()
        unbiased = variance * tf.cast(count / (count - 1), "float32")
        return tf.cast(outputs, inputs.dtype), mean, unbiased

    def _update_moving_statistics(self, statistics):
        """Moves the moving statistics; takes a (mean, variance) a group."""
        moving = self.moving_mean, self.moving_variance
        by_kind = zip(*statistics, strict=True)
        for variable, values in zip(moving, by_kind, strict=True):
            # Not `tf.add_n`, which begins with whatever input's memory it may
            # reuse, so that its roundings differ from run to run.
            value = tf.reduce_mean(tf.stack(values), axis=0)
            variable.assign(
                self.momentum * variable + (1.0 - self.momentum) * value
            )

    def compute_output_shape(self, inputs_shape, shortcut_shape=None):
        return inputs_shape

    def get_config(self):
        own = {
            "splits": self.splits,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "activation": keras.activations.serialize(self.activation),
            "synchronized": self.synchronized,
        }
        return {**super().get_config(), **own}
