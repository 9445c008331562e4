"""The one door to `tf.distribute`.

A replica is a copy of the model on a device of its own, with its part of each
batch. Without a strategy there is one, and nothing here changes anything.
"""

import tensorflow as tf

NAMES = ("auto", "none", "mirrored")


def strategy(name="auto"):
    """Chooses a `tf.distribute.Strategy` for the devices that there are.

    Build and compile a model in its scope:

        with distribution.strategy().scope():
            model = MoCo(...)
            model.compile(...)

    Args:
        name: "none": one device. "mirrored": all GPUs of this host, or all its
            logical CPUs where it has no GPU. "auto": "mirrored" where there are
            several GPUs, and else "none".

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in NAMES:
        raise ValueError(
            f"`name` must be one of {', '.join(NAMES)}. Received: {name!r}."
        )
    gpus = tf.config.list_logical_devices("GPU")
    if name == "none" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    devices = gpus or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def num_replicas():
    """Number of replicas that run this together; 1 outside `strategy.run`."""
    replica = tf.distribute.get_replica_context()
    return replica.num_replicas_in_sync if replica else 1


def all_gather(values):
    """Joins what all replicas hold, in their order.

    Args:
        values: (n, ...), of the same shape on each replica.

    Returns:
        (n x replicas, ...), the same on each replica.
    """
    if num_replicas() == 1:
        return values
    gathered = tf.distribute.get_replica_context().all_gather(values, axis=0)
    length = values.shape[0] and values.shape[0] * num_replicas()
    return tf.ensure_shape(gathered, (length, *values.shape[1:]))


def own_part(values, axis=0):
    """The part of a whole that belongs to the replica that runs this.

    Args:
        values: a tensor that every replica holds, with the replicas' parts, of
            equal length, in their order along `axis`.
    """
    if num_replicas() == 1:
        return values
    number = tf.distribute.get_replica_context().replica_id_in_sync_group
    length = tf.shape(values)[axis] // num_replicas()
    rows = number * length + tf.range(length)
    return tf.gather(values, rows, axis=axis)


def average(variables, strategy):
    """Gives all replicas the mean of their values of Keras variables."""

    def assign_means():
        replica = tf.distribute.get_replica_context()
        means = replica.all_reduce("MEAN", [v.value for v in variables])
        for variable, mean in zip(variables, means, strict=True):
            variable.assign(mean)

    if strategy.num_replicas_in_sync > 1 and variables:
        tf.function(lambda: strategy.run(assign_means))()


def check_scope(strategy, **variables):
    """Refuses Keras variables that were made outside the strategy's scope.

    Args:
        strategy: that trains.
        variables: one of each object's, by the object's name.

    Raises:
        ValueError: naming the object.
    """
    for name, variable in variables.items():
        of_replicas = isinstance(
            variable.value, tf.distribute.DistributedValues
        )
        if strategy.num_replicas_in_sync > 1 and not of_replicas:
            raise ValueError(
                f"The {name} must be made in the scope of the strategy that "
                f"trains, {type(strategy).__name__} of "
                f"{strategy.num_replicas_in_sync} replicas. Received one made "
                "outside of it. Put all that makes it under "
                "`with strategy.scope():`."
            )


def check_batch(batch_size, strategy):
    """Refuses a global batch that the replicas cannot share.

    Args:
        batch_size: images of all replicas in a step, or None if unknown.
        strategy: that trains.

    Raises:
        ValueError: if replicas would get unequal parts.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return
    if batch_size is None:
        raise ValueError(
            f"Batches must be of one known size, for {replicas} replicas share "
            "each. Received a data set whose last batch may be smaller. Make "
            "it with `dataset.batch(256, drop_remainder=True)` say."
        )
    if batch_size % replicas:
        raise ValueError(
            "The batch size, which is that of all replicas together, must be "
            f"divisible by their number. Received: batch_size={batch_size}, "
            f"{replicas} replicas. {-(-batch_size // replicas) * replicas} "
            "would do."
        )
