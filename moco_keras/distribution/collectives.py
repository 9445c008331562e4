"""What replicas exchange inside a step."""

import math

import tensorflow as tf

from moco_keras import keras_private


def num_replicas():
    """Number of replicas that run this together; 1 outside `strategy.run`."""
    replica = tf.distribute.get_replica_context()
    return replica.num_replicas_in_sync if replica else 1


def all_gather(values):
    """Joins what all replicas hold, in their order, by one collective.

    Args:
        values: numbers (n, ...), of the same shape on each replica.

    Returns:
        (n x replicas, ...), the same on each replica, to the bit; numbers of
        less than four bytes that have unknown sides travel as float32.
    """
    if num_replicas() == 1:
        return values
    if values.dtype.size < 4 and not values.shape[1:].is_fully_defined():
        wide = all_gather(tf.cast(values, "float32"))
        return tf.cast(wide, values.dtype)
    replica = tf.distribute.get_replica_context()
    # A worker's only replica gets its images on no device, and TensorFlow
    # cannot gather those.
    words = tf.identity(_as_words(values))
    gather = None
    if words.shape.is_fully_defined() and not tf.executing_eagerly():
        gather = keras_private.single_gather(replica)
    gathered = gather(words, None) if gather else replica.all_gather(words, 0)
    length = values.shape[0] and values.shape[0] * num_replicas()
    return _from_words(gathered, values.dtype, (length, *values.shape[1:]))


# TensorFlow's collectives take no type of less than four bytes but float16.
def _as_words(values):
    """The same bytes as float32, (n, words)."""
    if values.dtype.size >= 4:
        return values
    flat = tf.reshape(values, (-1, math.prod(values.shape[1:])))
    per_word = 4 // values.dtype.size
    flat = tf.pad(flat, ((0, 0), (0, -flat.shape[1] % per_word)))
    words = tf.reshape(flat, (-1, flat.shape[1] // per_word, per_word))
    return tf.bitcast(words, "float32")


def _from_words(words, dtype, shape):
    if dtype.size >= 4:
        return tf.ensure_shape(words, shape)
    flat = tf.bitcast(words, dtype)
    flat = tf.reshape(flat, (-1, math.prod(flat.shape[1:])))
    own = flat[:, : math.prod(shape[1:])]
    return tf.ensure_shape(tf.reshape(own, (-1, *shape[1:])), shape)


def stack(values):
    """Stacks what all replicas hold, by one all-reduce; gradients pass through.

    Args:
        values: float (...), small ones: what travels is all of the result.

    Returns:
        (replicas, ...), the same on each replica.
    """
    replica = tf.distribute.get_replica_context()
    number = replica.replica_id_in_sync_group
    own = tf.one_hot(number, num_replicas(), dtype=values.dtype)
    placed = tf.tensordot(own, values, axes=0)
    return replica.all_reduce("SUM", placed)


def all_reduce_overflow(gradients):
    """Makes gradients NaN on all replicas where they are not finite on one.

    Args:
        gradients: list of float tensors, and of None.

    Returns:
        The same list, or NaN in its place.
    """
    if num_replicas() == 1:
        return gradients
    replica = tf.distribute.get_replica_context()
    finite = [
        tf.reduce_all(tf.math.is_finite(g)) for g in gradients if g is not None
    ]
    bad = 1.0 - tf.cast(tf.reduce_all(finite), "float32")
    spoiled = replica.all_reduce("SUM", bad) > 0
    return [
        None
        if g is None
        else tf.where(spoiled, tf.constant(math.nan, g.dtype), g)
        for g in gradients
    ]


def apply_gradients(optimizer, gradients, variables):
    """Has an optimizer apply the sum of all replicas' gradients.

    Keras accumulates gradients by a condition within a replica, where replicas
    cannot wait for each other. With several, the condition is outside.

    Args:
        optimizer: a Keras optimizer.
        gradients: list of tensors, and of None.
        variables: list of Keras variables, as long.
    """
    steps = optimizer.gradient_accumulation_steps
    if num_replicas() == 1 or not steps:
        optimizer.apply(gradients, variables)
        return
    replica = tf.distribute.get_replica_context()
    given = [
        (g, v)
        for g, v in zip(gradients, variables, strict=True)
        if g is not None
    ]
    gradients, variables = (list(x) for x in zip(*given, strict=True))
    sums = [
        keras_private.accumulated_gradients(optimizer, v) for v in variables
    ]
    applied = keras_private.num_applied(optimizer)
    # Added up now, so that all replicas hold the same sums, which are saved.
    gradients = replica.all_reduce("SUM", gradients)

    def accumulate(gradients):
        for total, g in zip(sums, gradients, strict=True):
            total.assign_add(g)
        applied.assign_add(1)

    def update(gradients):
        means = [
            (total + g) / (steps * num_replicas())  # `apply` sums them
            for total, g in zip(sums, gradients, strict=True)
        ]
        optimizer.gradient_accumulation_steps = None
        try:
            optimizer.apply(means, variables)
        finally:
            optimizer.gradient_accumulation_steps = steps
        for total in sums:
            total.assign(tf.zeros_like(total))

    def together(strategy, gradients):
        each = strategy.extended.call_for_each_replica
        tf.cond(
            (applied + 1) % steps == 0,
            lambda: each(update, (gradients,)),
            lambda: each(accumulate, (gradients,)),
        )

    replica.merge_call(together, (gradients,))


def replica_slice(values):
    """The part of a whole that belongs to the replica that runs this.

    Args:
        values: a tensor that every replica holds, with the replicas' parts, of
            equal length, in their order along axis 0.
    """
    if num_replicas() == 1:
        return values
    number = tf.distribute.get_replica_context().replica_id_in_sync_group
    length = tf.shape(values)[0] // num_replicas()
    rows = number * length + tf.range(length)
    return tf.gather(values, rows)
