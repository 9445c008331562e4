"""Choosing a `tf.distribute.Strategy`, and what must fit it."""

import os

import tensorflow as tf

from moco_keras.distribution import accelerators, cluster
from moco_keras.distribution.workers import num_workers

NAMES = ("auto", "none", "mirrored", "multiworker", "tpu")


def strategy(name="auto"):
    """Chooses a `tf.distribute.Strategy` for the devices that there are.

    Build and compile a model in its scope:

        with distribution.strategy().scope():
            model = MoCo(...)
            model.compile(...)

    Args:
        name: "none": one device. "mirrored": all GPUs of this host, or all its
            logical CPUs where it has no GPU. "multiworker": those of all hosts
            that the environment variable TF_CONFIG names; call this before
            TensorFlow has done anything else. "tpu": the TPU's cores. "auto":
            "multiworker" where TF_CONFIG is set, "mirrored" where there are
            several GPUs, and else "none".

    Raises:
        ValueError: if the name is unknown, or TF_CONFIG malformed.
        ConnectionError: if another worker cannot be reached within 45 s.
        RuntimeError: if TensorFlow is in use already, or there is no TPU.
    """
    if name not in NAMES:
        raise ValueError(
            f"`name` must be one of {', '.join(NAMES)}. Received: {name!r}."
        )
    if name == "multiworker" or (
        name == "auto" and os.environ.get("TF_CONFIG")
    ):
        return _multi_worker()
    if name == "tpu":
        return _tpu()
    devices = accelerators.logical_devices()
    many = accelerators.on_gpu() and len(devices) > 1
    if name == "none" or (name == "auto" and not many):
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy(devices)


def _multi_worker():
    cluster.join()
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise RuntimeError(
            "A strategy of many workers must be made before TensorFlow "
            f"computes anything. Received: {error}. Call "
            '`distribution.strategy("multiworker")` first in the program.'
        ) from None


def _tpu():
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, tf.errors.OpError) as error:
        raise RuntimeError(
            "A TPU must be attached, and the environment variable TPU_NAME "
            f'name it, "local" on its own host. Received: {error} Choose '
            f"another strategy: {', '.join(NAMES)}."
        ) from None
    return tf.distribute.TPUStrategy(resolver)


def describe(strategy):
    """Names the GPUs, or the processor, that a strategy trains on here.

    A TPU it does not know.
    """
    workers = num_workers(strategy)
    device = accelerators.describe(strategy.num_replicas_in_sync // workers)
    return device if workers == 1 else f"{device}, on each of {workers} hosts"


def check_scope(strategy, **variables):
    """Refuses Keras variables that were made outside the strategy's scope.

    Args:
        strategy: that trains.
        variables: lists of them, by the name of the object that has them.

    Raises:
        ValueError: naming the object.
    """
    if strategy.num_replicas_in_sync == 1:
        return
    for name, values in variables.items():
        if not all(
            isinstance(v.value, tf.distribute.DistributedValues) for v in values
        ):
            raise ValueError(
                f"The {name} must be made in the scope of the strategy that "
                f"trains, {type(strategy).__name__} of "
                f"{strategy.num_replicas_in_sync} replicas. Received one made "
                "outside of it, or a part that was. Put all that makes it "
                "under `with strategy.scope():`."
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
            f"Batches must have one known size, because {replicas} replicas "
            "share each. Received a data set whose last batch may be smaller. "
            "Use `dataset.batch(256, drop_remainder=True)`, for example."
        )
    if batch_size % replicas:
        raise ValueError(
            "`batch_size` is that of all replicas together, and must be "
            f"divisible by their number. Received: batch_size={batch_size}, "
            f"{replicas} replicas. {-(-batch_size // replicas) * replicas} "
            "would do."
        )


def check_accumulation(optimizer, strategy):
    """Refuses an optimizer whose gradients several replicas cannot accumulate.

    Raises:
        ValueError: if it scales the loss, too.
    """
    inner = getattr(optimizer, "inner_optimizer", None)
    steps = getattr(inner, "gradient_accumulation_steps", None)
    if steps and strategy.num_replicas_in_sync > 1:
        raise ValueError(
            "`gradient_accumulation_steps` must not be given with loss scaling "
            f"on several replicas. Received: {steps}, on "
            f"{strategy.num_replicas_in_sync} replicas. Use mixed_bfloat16, "
            "which needs no loss scaling, or larger batches."
        )
