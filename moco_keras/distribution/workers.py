"""What the processes of a training run exchange between steps."""

import contextlib
import functools

import tensorflow as tf


def num_workers(strategy):
    """The number of processes of a strategy."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    jobs = strategy.cluster_resolver.cluster_spec().as_dict()
    return max(1, sum(len(workers) for workers in jobs.values()))


def is_multi_worker(strategy):
    """Whether a strategy has several processes, one for each worker."""
    return num_workers(strategy) > 1


def is_chief(strategy):
    """Whether this process is the one that writes files: one of all workers."""
    if not is_multi_worker(strategy):
        return True
    resolver = strategy.cluster_resolver
    if "chief" in resolver.cluster_spec().jobs:
        return resolver.task_type == "chief"
    return resolver.task_id == 0


@contextlib.contextmanager
def chief_first(strategy):
    """Lets the other workers do something only once the chief has done it."""
    if not is_chief(strategy):
        barrier(strategy)
    yield
    if is_chief(strategy):
        barrier(strategy)


def barrier(strategy):
    """Waits until all workers are here."""
    if is_multi_worker(strategy):
        all_reduce_sum([0], strategy)


@contextlib.contextmanager
def readable_worker_errors(strategy):
    """Says readably that another worker has gone, while this one computes.

    Raises:
        ConnectionError: in place of TensorFlow's errors about connections.
    """
    try:
        yield
    except (
        tf.errors.UnavailableError,
        tf.errors.DeadlineExceededError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
    ) as error:
        if not is_multi_worker(strategy):
            raise
        raise ConnectionError(
            "All workers must run until the end. One has ended or cannot be "
            "reached any more; its own output says why. Start all workers "
            "again; they resume from the last checkpoint where there is one. "
            f"Received: {type(error).__name__}."
        ) from error


def broadcast(values, strategy):
    """The chief's values, on all workers.

    Args:
        values: dict of tensors, of the same shapes on all.
    """
    if not is_multi_worker(strategy):
        return values
    # As one tensor, of words of four bytes.
    wide = {
        name: x if x.dtype.size >= 4 else tf.cast(x, "float32")
        for name, x in values.items()
    }
    words = {name: tf.bitcast(x, "int32") for name, x in wide.items()}
    flat = tf.concat([tf.reshape(x, -1) for x in words.values()], 0)
    if not is_chief(strategy):
        flat = tf.zeros_like(flat)
    parts = tf.split(
        _all_reduce_sum(flat, strategy), [tf.size(x) for x in words.values()]
    )
    received = {}
    for (name, x), part in zip(words.items(), parts, strict=True):
        part = tf.bitcast(tf.reshape(part, x.shape), wide[name].dtype)
        received[name] = tf.cast(part, values[name].dtype)
    return received


def all_reduce_sum(counts, strategy):
    """Adds up what all workers count; all wait for each other.

    Args:
        counts: list of integers, as long on all workers.

    Returns:
        A list of integers, the same on all.
    """
    return (
        _all_reduce_sum(tf.constant(counts, "int32"), strategy).numpy().tolist()
    )


def _all_reduce_sum(values, strategy):
    """The sum of the workers' values, int32 (n,)."""
    return strategy.experimental_local_results(_adder(strategy)(values))[0]


@functools.cache
def _adder(strategy):
    here = strategy.num_replicas_in_sync // num_workers(strategy)

    def add(values):
        replica = tf.distribute.get_replica_context()
        first = replica.replica_id_in_sync_group % here == 0  # of its worker
        values = tf.where(first, values, tf.zeros_like(values))
        return replica.all_reduce("SUM", values)

    return tf.function(lambda values: strategy.run(add, (values,)))


def replica_logs(metrics, strategy):
    """What a train step returns for Keras to average over the replicas.

    Args:
        metrics: scalars by name.
    """
    if not is_multi_worker(strategy):
        return metrics
    # Between workers Keras takes the mean of an axis, and needs one.
    return {name: value[None] for name, value in metrics.items()}
