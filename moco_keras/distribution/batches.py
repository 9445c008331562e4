"""Batches that replicas share, and variables that each has its own of."""

import math

import numpy as np
import tensorflow as tf

from moco_keras.distribution import accelerators
from moco_keras.distribution.collectives import all_gather, replica_slice


def distribute_batches(batches, read, strategy):
    """Reads batches, or on many replicas what each gets of them.

    Args:
        batches: a `tf.data.Dataset` of what to read, tensors (N,), without an
            end and the same in every process.
        read: function from a data set of parts of it, (n,), to one of batches
            of n.
        strategy: whose replicas share each batch, in their order.

    Returns:
        What Keras's `fit` takes.
    """

    def of_worker(context):
        replicas = context.num_replicas_in_sync
        here = replicas // context.num_input_pipelines
        first = here * context.input_pipeline_id

        def own(x):
            return tf.reshape(x, (replicas, -1))[first : first + here]

        parts = batches.map(lambda *x: tf.nest.map_structure(own, x))
        return read(parts.unbatch()).prefetch(tf.data.AUTOTUNE)

    if strategy.num_replicas_in_sync == 1:
        return _prefetched(read(batches), strategy)
    return strategy.distribute_datasets_from_function(of_worker)


def distribute_batch(batch, strategy):
    """Splits one batch into equal parts, one for each replica, in order.

    Args:
        batch: arrays (N, ...), of all replicas; the same in every process.
        strategy: whose replicas share it.

    Returns:
        What `strategy.run` takes.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return batch

    def own(context):
        number = context.replica_id_in_sync_group

        def part(x):
            length = len(x) // replicas
            return tf.constant(x[number * length : (number + 1) * length])

        return tf.nest.map_structure(part, batch)

    return strategy.experimental_distribute_values_from_function(own)


def _prefetched(batches, strategy):
    """Has the next batch ready where it is needed, on a GPU too."""
    with strategy.scope():
        chosen = tf.distribute.has_strategy()
    # A strategy that the user chose brings batches to its devices itself.
    if chosen or not accelerators.on_gpu():
        return batches.prefetch(tf.data.AUTOTUNE)
    device = accelerators.logical_devices()[0]
    batches = batches.apply(
        tf.data.experimental.prefetch_to_device(device, buffer_size=2)
    )
    # Options that were set before do not reach past `prefetch_to_device`.
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)


def predict(predict, images, batch_size, strategy):
    """Predicts by batches that all replicas share equally.

    A convolution fails on a replica that the last images do not reach.

    Args:
        predict: function of images and a batch size, such as Keras's.
        images: array (N, ...).
        batch_size: images in a step, of all replicas.

    Returns:
        What `predict` returns for all images, (N, ...) each.
    """
    images = np.asarray(images)
    replicas = strategy.num_replicas_in_sync
    if replicas == 1 or len(images) == 0:
        return predict(images, batch_size)
    batch_size += -batch_size % replicas
    whole = len(images) // batch_size * batch_size
    parts = [predict(images[:whole], batch_size)] if whole else []
    rest = images[whole:]
    if len(rest):
        even = len(rest) + -len(rest) % replicas
        padded = rest[np.arange(even) % len(rest)]
        outputs = predict(padded, even)
        parts.append(tf.nest.map_structure(lambda x: x[: len(rest)], outputs))
    return tf.nest.map_structure(lambda *xs: np.concatenate(xs), *parts)


class ReplicaValues:
    """Variables that have values of their own on each replica.

    Args:
        variables: Keras variables, float32.
        strategy: that trains.
    """

    def __init__(self, variables, strategy):
        self._variables = list(variables)
        self._strategy = strategy
        self._values = tf.function(lambda: strategy.run(self._gather))
        self._assign = tf.function(lambda x: strategy.run(self._take, (x,)))

    def _gather(self):
        # As one tensor: a message costs more than what it holds.
        values = [tf.reshape(v.value, (1, -1)) for v in self._variables]
        return all_gather(tf.concat(values, axis=1))

    def _take(self, values):
        sizes = [math.prod(v.shape) for v in self._variables]
        own = tf.split(replica_slice(values)[0], sizes)
        for variable, value in zip(self._variables, own, strict=True):
            variable.assign(tf.reshape(value, variable.shape))

    def values(self):
        """What all replicas hold, in their order: float32 (replicas, n)."""
        return self._strategy.experimental_local_results(self._values())[0]

    def assign(self, values):
        """Gives each replica its own of float32 (replicas, n)."""
        self._assign(values)

    def average(self):
        """Gives all replicas the mean of what they hold."""
        replicas = self._strategy.num_replicas_in_sync
        if replicas > 1 and self._variables:
            mean = tf.reduce_mean(self.values(), 0, keepdims=True)
            self.assign(match_replicas(mean, replicas))


def match_replicas(values, replicas):
    """Adapts values of replicas to another number of them: each gets the mean.

    Args:
        values: (M, ...).

    Returns:
        (replicas, ...), the same values where there are as many.
    """
    if len(values) == replicas:
        return values
    return tf.repeat(tf.reduce_mean(values, 0, keepdims=True), replicas, axis=0)
