"""The timings of `gpu.py`: generators of (measured, value, None)."""

import math
import statistics
import time
from unittest import mock

import keras
import tensorflow as tf

from moco_keras import build_encoder, distribution
from moco_keras.recipes.benchmark import training_workloads


def step(precision, jit, turns, matrix, **settings):
    """Times steps on ready views, and compares them with matrix products."""
    settings |= {"precision": precision, "jit": jit}
    run, images = training_workloads.step(settings)
    seconds = median_seconds(run, turns)
    encoder = build_encoder("resnet18", 32, width=settings["width"])
    # The queries forward, twice that backward, and the keys forward.
    operations = 4 * forward_operations(encoder) * images
    dtype = keras.DTypePolicy(precision).compute_dtype
    peak = product_operations(dtype, matrix, turns)
    yield "images/s", f"{images / seconds:.0f}", None
    ms = 1000 * seconds / settings["steps"]
    yield f"ms a step of {settings['batch_size']} images", f"{ms:.2f}", None
    # TensorFlow's default, also in the steps.
    kind = f"{dtype} in TF32 where there is" if dtype == "float32" else dtype
    yield (
        f"share of what products of {matrix} x {matrix} matrices reach, {kind}",
        f"{operations / seconds / peak:.0%} of {peak / 1e12:.3g} TFLOP/s",
        None,
    )


def forward_operations(encoder):
    """Multiplications and additions per image, without cheap layers."""
    total = 0
    for layer in encoder.layers:
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
            positions = math.prod(layer.output.shape[1:-1])  # 1 where dense
            total += 2 * positions * math.prod(layer.kernel.shape)
    return total


def product_operations(dtype, size, turns, products=10):
    """Operations per second in products of two square matrices."""
    matrix = tf.random.normal((size, size), stddev=size**-0.5)
    matrix = tf.cast(matrix, dtype)

    @tf.function
    def run():
        x = matrix
        for _ in range(products):
            x = tf.matmul(x, matrix)
        return x

    return products * 2 * size**3 / median_seconds(run, turns)


def median_seconds(run, turns):
    """Median seconds of a turn, after one that traces and compiles."""
    seconds = []
    for _ in range(1 + turns):
        start = time.perf_counter()
        run()
        tf.test.experimental.sync_devices()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def metrics(turns, **settings):
    """Times steps of `fit` as they are, and with metrics kept as tensors."""
    run, _ = training_workloads.step(settings)
    seconds = [median_seconds(run, turns)]
    to_floats = "keras.src.utils.python_utils.pythonify_logs"
    with mock.patch(to_floats, lambda logs: logs or {}):
        seconds.append(median_seconds(run, turns))
    hows = ("made floats after each, as Keras does", "left as tensors")
    for how, s in zip(hows, seconds, strict=True):
        value = f"{1000 * s / settings['steps']:.2f}"
        yield f"ms a step, its metrics {how}", value, None


def all_reduce(turns, **architecture):
    """Times only the sum of all gradients over the GPUs."""
    strategy = distribution.strategy("mirrored")
    with strategy.scope():
        encoder = build_encoder(**architecture)
    variables = encoder.trainable_variables  # as large as their gradients
    size = 4 * sum(math.prod(v.shape) for v in variables)
    for mebibytes in (0, 4, 32):
        options = tf.distribute.experimental.CommunicationOptions(
            bytes_per_pack=mebibytes * 2**20
        )

        def reduce(options=options):
            values = [tf.convert_to_tensor(v.value) for v in variables]
            replica = tf.distribute.get_replica_context()
            return replica.all_reduce("SUM", values, options=options)

        seconds = seconds_of_all(strategy, reduce, turns)
        packs = f"packs of {mebibytes} MiB" if mebibytes else "one piece"
        yield (
            f"ms to add up gradients of {size / 1e6:.3g} MB, in {packs}",
            f"{1000 * seconds:.2f}",
            None,
        )


def gather(turns, images, side):
    """Times only the exchange of images before the key encoder."""
    strategy = distribution.strategy("mirrored")
    with strategy.scope():
        own = tf.Variable(tf.zeros((images, side, side, 3)))
    seconds = seconds_of_all(
        strategy, lambda: distribution.all_gather(own.read_value()), turns
    )
    what = f"{images} images a GPU, of {side} x {side}"
    yield f"ms to gather {what}", f"{1000 * seconds:.2f}", None
    # Each of n GPUs receives n - 1 batches, and needs 1 - 1/n of one.
    needed = seconds / strategy.num_replicas_in_sync
    yield (
        f"ms to send only the rows needed of {what}: an estimate from bytes",
        f"{1000 * needed:.2f}",
        None,
    )


def seconds_of_all(strategy, exchange, turns, repeats=10):
    """Median seconds of an exchange by all replicas."""
    together = tf.function(lambda: strategy.run(exchange))

    def run():
        for _ in range(repeats):
            together()

    return median_seconds(run, turns) / repeats
