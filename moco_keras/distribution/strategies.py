"""The one door to `tf.distribute`.

A replica is a copy of the model on a device of its own, with its part of each
batch. Without a strategy there is one, and nothing here changes anything.
"""

import contextlib
import functools
import math
import os

import numpy as np
import tensorflow as tf

from moco_keras.distribution import accelerators, cluster

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


def num_workers(strategy):
    """How many processes a strategy is that of."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    jobs = strategy.cluster_resolver.cluster_spec().as_dict()
    return max(1, sum(len(workers) for workers in jobs.values()))


def across_workers(strategy):
    """Whether a strategy is that of several processes, one a worker."""
    return num_workers(strategy) > 1


def is_chief(strategy):
    """Whether this process is the one that writes files: one of all workers."""
    if not across_workers(strategy):
        return True
    resolver = strategy.cluster_resolver
    if "chief" in resolver.cluster_spec().jobs:
        return resolver.task_type == "chief"
    return resolver.task_id == 0


@contextlib.contextmanager
def chief_first(strategy):
    """Lets the other workers do something only once the chief has done it."""
    if not is_chief(strategy):
        meet(strategy)
    yield
    if is_chief(strategy):
        meet(strategy)


def meet(strategy):
    """Waits until all workers are here."""
    if across_workers(strategy):
        total([0], strategy)


@contextlib.contextmanager
def loss_of_workers(strategy):
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
        if not across_workers(strategy):
            raise
        raise ConnectionError(
            "All workers must run until the end. One has ended or cannot be "
            "reached any more; its own output says why. Start all workers "
            "again; they go on from the last checkpoint where there is one. "
            f"Received: {type(error).__name__}."
        ) from error


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
    gather = _single_gather(replica, words)
    gathered = gather(words, None) if gather else replica.all_gather(words, 0)
    length = values.shape[0] and values.shape[0] * num_replicas()
    return _from_words(gathered, values.dtype, (length, *values.shape[1:]))


def _single_gather(replica, values):
    """TensorFlow's gather for shapes that are known, or None.

    The public one gathers the shapes first, by a collective of its own that
    every other one waits for. This one is private: where TensorFlow no longer
    has it, the public one is used.
    """
    if tf.executing_eagerly() or not values.shape.is_fully_defined():
        return None
    cross_device = getattr(replica.strategy.extended, "_cross_device_ops", None)
    launchers = getattr(cross_device, "_launchers", None)
    number = getattr(replica, "_replica_id", None)
    if not launchers or number is None:
        return None
    own = launchers[number % len(launchers)]  # they are this worker's
    return getattr(own, "_all_gather", None)


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


def share_overflow(gradients):
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
    cannot meet. On several of them the condition is outside.

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
        optimizer._accumulated_gradients[optimizer._get_variable_index(v)]
        for v in variables
    ]
    # Added up now, so that all replicas hold the same sums, which are saved.
    gradients = replica.all_reduce("SUM", gradients)

    def accumulate(gradients):
        for total, g in zip(sums, gradients, strict=True):
            total.assign_add(g)
        optimizer._iterations.assign_add(1)

    def update(gradients):
        means = [
            (total + g) / (steps * num_replicas())  # which it adds up
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
            (optimizer._iterations + 1) % steps == 0,
            lambda: each(update, (gradients,)),
            lambda: each(accumulate, (gradients,)),
        )

    replica.merge_call(together, (gradients,))


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


def describe(strategy):
    """Names the GPUs, or the processor, that a strategy trains on here.

    A TPU it does not know.
    """
    workers = num_workers(strategy)
    device = accelerators.describe(strategy.num_replicas_in_sync // workers)
    return device if workers == 1 else f"{device}, on each of {workers} hosts"


def own_part(values):
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


def spread(batches, read, strategy):
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


def shared(batch, strategy):
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
    """Predicts by batches of which every replica gets the same number.

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


def logs(metrics, strategy):
    """What a train step returns for Keras to average over the replicas.

    Args:
        metrics: scalars by name.
    """
    if not across_workers(strategy):
        return metrics
    # Between workers Keras takes the mean of an axis, and needs one.
    return {name: value[None] for name, value in metrics.items()}


class OfReplicas:
    """Variables of which each replica has values of its own.

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
        # As one tensor, for a message costs more than what it holds.
        values = [tf.reshape(v.value, (1, -1)) for v in self._variables]
        return all_gather(tf.concat(values, axis=1))

    def _take(self, values):
        sizes = [math.prod(v.shape) for v in self._variables]
        own = tf.split(own_part(values)[0], sizes)
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
            self.assign(share(mean, replicas))


def share(values, replicas):
    """What replicas hold for another number of them, who all get the mean.

    Args:
        values: (M, ...).

    Returns:
        (replicas, ...), the same values where there are as many.
    """
    if len(values) == replicas:
        return values
    return tf.repeat(tf.reduce_mean(values, 0, keepdims=True), replicas, axis=0)


def of_chief(values, strategy):
    """The chief's values, on all workers.

    Args:
        values: dict of tensors, of the same shapes on all.
    """
    if not across_workers(strategy):
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
        _total(flat, strategy), [tf.size(x) for x in words.values()]
    )
    received = {}
    for (name, x), part in zip(words.items(), parts, strict=True):
        part = tf.bitcast(tf.reshape(part, x.shape), wide[name].dtype)
        received[name] = tf.cast(part, values[name].dtype)
    return received


def total(counts, strategy):
    """Adds up what all workers count; all wait for each other.

    Args:
        counts: list of integers, as long on all workers.

    Returns:
        A list of integers, the same on all.
    """
    return _total(tf.constant(counts, "int32"), strategy).numpy().tolist()


def _total(values, strategy):
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
