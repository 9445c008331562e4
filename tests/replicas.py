"""Trains small models under a strategy, in a process of its own.

    python tests/replicas.py WHAT REPLICAS FOLDER

WHAT is the name of a function below that ends with results to save. One
strategy a process: TensorFlow's collectives on a CPU break with the second.
Where TF_CONFIG is set, the replicas are those of two workers together.
"""

import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.distribute import collective_all_reduce_strategy

from moco_keras import (
    MoCo,
    SplitBatchNormalization,
    augmentations,
    build_encoder,
    distribution,
    export_encoder,
    optimizers,
)
from moco_keras.checkpoint import Checkpoint

BATCH, STEPS = 16, 10
# By name: splits of batch norm of one device (0: no batch norm, "sync": one of
# all replicas), settings, and numbers of replicas to try.
RUNS = {
    "plain": (0, {}, (1, 2, "workers")),
    "symmetric v2": (
        0,
        {"symmetric": True, "head": "mlp", "ready_views": True},
        (1, 2, 4, "workers"),
    ),
    "in order": (0, {"shuffle": "none", "ready_views": True}, (1, 2)),
    # Of two replicas, each has its own.
    "batch norm": (2, {"ready_views": True}, (1, 2)),
    "sync": ("sync", {"ready_views": True}, (1, 2)),
}


def make_model(
    splits=0, head="linear", queue_size=37, ready_views=False, **settings
):
    """A compiled model for images of 8 pixels, or for ready views of them."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, strides=2)(x)
    if splits == "sync":
        x = SplitBatchNormalization(synchronized=True)(x)
    elif splits:
        x = SplitBatchNormalization(splits)(x)
    backbone = keras.Model(inputs, keras.layers.ReLU()(x))
    model = MoCo(
        build_encoder(backbone, 8, 4, head=head),
        # Tracing it takes most of the time.
        None if ready_views else augmentations.cifar(8, min_area=0.5),
        queue_size=queue_size,
        temperature=0.2,
        momentum=0.9,
        **settings,
    )
    model.compile(optimizer=optimizers.SGD(0.1))
    return model


def make_images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), "uint8")


def ready_views(images):
    """Two views of each image, as the images are and with colours swapped."""
    return images.astype("float32"), images[..., ::-1, :].astype("float32")


def train(model, steps=STEPS):
    """Trains in order; returns what there is to compare, by name."""
    losses = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: losses.append(dict(logs))
    )
    images = make_images(steps * BATCH)
    model.fit(
        images if model.augmenter else ready_views(images),
        batch_size=BATCH,
        shuffle=False,
        callbacks=[watch],
        verbose=0,
    )
    results = {
        name: [logs[name] for logs in losses]
        for name in ("loss", "contrastive_accuracy")
    }
    for i, variable in enumerate(model.variables):
        # Not its path, for names count up in a process.
        results[f"{i} {variable.name}"] = variable.numpy()
    return results


def copies(variable):
    """The values that the replicas hold of a variable."""
    return [copy.numpy() for copy in getattr(variable.value, "values", ())]


def are_same(model):
    """Whether replicas hold the same after 50 steps in all, by variable."""
    train(model, steps=50 - STEPS)
    results = {}
    for variable in model.variables:
        first, *others = copies(variable)
        same = [np.array_equal(first, other) for other in others]
        results[f"same/{variable.path}"] = same
    return results


def logical_devices(count):
    """Makes parts of a GPU, or of the processor, that pass for devices."""
    visible = tf.config.get_visible_devices
    (gpu_or_cpu,) = visible("GPU") or visible("CPU")
    mebibytes = 1024 if visible("GPU") else None  # of a GPU it must be said
    tf.config.set_logical_device_configuration(
        gpu_or_cpu,
        [tf.config.LogicalDeviceConfiguration(mebibytes) for _ in range(count)],
    )


def free_ports(count):
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(socket.create_server(("", 0)))
            for _ in range(count)
        ]
        return [server.getsockname()[1] for server in servers]


def tf_config(ports, index=0, kind="worker", **jobs):
    """TF_CONFIG of a worker on this host."""
    workers = [f"localhost:{port}" for port in ports]
    task = {"type": kind, "index": index}
    return json.dumps({"cluster": {"worker": workers, **jobs}, "task": task})


def two_cpus_a_worker():
    """Lets a worker have two replicas, as where it has two GPUs.

    TensorFlow takes one of a worker's logical CPUs, and has no setting for it.
    """
    logical_devices(2)

    def devices(self, resolver, worker):
        return [f"{worker}/device:CPU:{i}" for i in range(2)], "CPU"

    extended = collective_all_reduce_strategy.CollectiveAllReduceExtended
    extended._initialize_local_devices = devices


class _BatchMean(keras.layers.Layer):
    """Returns for every image the mean of its batch, and nothing of its own.

    All that batch norm brings an image from others: eight numbers, so that
    hundreds of negatives come close to half a match.
    """

    def call(self, images):
        means = keras.ops.mean(images, axis=(2, 3))  # (N, 8)
        return 0 * means + keras.ops.mean(means, axis=0)


def cheat(shuffle):
    """Contrastive accuracy of an encoder that knows only its batch's mean."""
    images = np.random.default_rng(0).normal(size=(60 * BATCH, 8, 8, 3))
    inputs = keras.Input((8, 8, 3))
    encoder = keras.Model(inputs, _BatchMean()(inputs))
    model = MoCo(encoder, queue_size=512, shuffle=shuffle)
    model.compile(optimizer=optimizers.SGD(0.0))
    history = model.fit(
        (images.astype("float32"),) * 2,
        batch_size=BATCH,
        epochs=2,  # the first fills the queue
        verbose=0,
    )
    return history.history["contrastive_accuracy"][1]


def leave(model, folder):
    """Saves and exports a model."""
    model.save(folder / "model.keras")
    export_encoder(model, folder / "encoder")


def chief_first(strategy, path):
    """Whether what the chief makes slowly is there when it is looked for."""
    with distribution.chief_first(strategy):
        if distribution.is_chief(strategy):
            time.sleep(1)
            path.touch()
        return path.exists()


def complaints(strategy):
    """What is said about each kind of bad input, by name."""
    with strategy.scope():
        model = make_model()
        small = make_model(queue_size=8)
        hasty = make_model()
        hasty.compile(optimizer=optimizers.SGD(0.1), steps_per_execution=2)
        loose = make_model()
    outside = make_model()
    loose.compile(optimizer=optimizers.SGD(0.1))
    images = make_images(40)
    unequal = tf.data.Dataset.from_tensor_slices(images).batch(16)

    def fit_in_scope():
        with strategy.scope():
            outside.fit(images, batch_size=16)

    attempts = {
        "indivisible": lambda: model.fit(images, batch_size=15),
        "unequal": lambda: model.fit(unequal),
        "queue": lambda: small.fit(images, batch_size=16, verbose=0),
        "steps": lambda: hasty.fit(images, batch_size=16, verbose=0),
        "compiled": lambda: loose.fit(images, batch_size=16),
        "built": fit_in_scope,
    }
    messages = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except ValueError as error:
            messages[f"complaint/{name}"] = str(error)
    return messages


def compare(strategy, folder):
    """Trains as one device would, and what else there is to see."""
    replicas = strategy.num_replicas_in_sync
    workers = distribution.across_workers(strategy)
    results = {}
    for name, (splits, settings, counts) in RUNS.items():
        if ("workers" if workers else replicas) not in counts:
            continue
        with strategy.scope():
            model = make_model(
                splits // replicas if splits == 2 else splits, **settings
            )
        for key, value in train(model).items():
            results[f"{name}/{key}"] = value
        if name == "plain" and (replicas == 2 or workers):
            if distribution.is_chief(strategy):
                leave(model, folder)
            images = make_images(19)
            results["predicted"] = model.predict(images, 8, verbose=0)
        if name == "batch norm" and replicas == 2:
            results |= are_same(model)
    if replicas == 2:
        results |= complaints(strategy)
    elif workers:
        results["chief first"] = chief_first(strategy, folder.parent / "made")
    elif replicas == 4:
        with strategy.scope():
            for shuffle in ("replicas", "none"):
                results[f"cheat/{shuffle}"] = cheat(shuffle)
    return results


def train_or_die(strategy, folder=None, dies=False):
    """Trains with batch norm; from checkpoints in the folder, if there is one.

    Another worker than the chief dies on the way, if told to.

    Returns:
        What has been trained, by number, and the number of steps that it took.
    """
    trained = 0
    with strategy.scope():
        model = make_model(splits=1, ready_views=True)

    def perhaps_die(batch, logs):
        nonlocal trained
        trained += 1
        steps = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
        if dies and steps == 8 and not distribution.is_chief(strategy):
            os._exit(9)

    callbacks = [keras.callbacks.LambdaCallback(on_train_batch_end=perhaps_die)]
    if folder:
        callbacks.append(Checkpoint(folder / "run", "2 steps"))
    model.fit(
        ready_views(make_images(5 * BATCH)),
        batch_size=BATCH,
        epochs=3,
        callbacks=callbacks,
        verbose=0,
    )
    variables = (*model.variables, *model.optimizer.variables)
    values = {  # by number, for names count up in a process
        str(i): keras.ops.convert_to_numpy(v)
        for i, v in enumerate(variables)
        if not any(v is metric for metric in model.metrics_variables)
    }
    return values, trained


def die(strategy, folder):
    """Is not survived by another worker than the chief."""
    return train_or_die(strategy, folder, dies=True)


def survive(strategy, folder):
    """Goes on where the others died, and trains again as if none had."""
    results = {}
    for name, where in {"rest": folder, "whole": None}.items():
        values, steps = train_or_die(strategy, where)
        results[f"steps of {name}"] = steps
        for key, value in values.items():
            results[f"{name}/{key}"] = value
    return results


def main(what, replicas, folder):
    tf.config.experimental.enable_tensor_float_32_execution(False)
    if "TF_CONFIG" in os.environ:
        # NCCL refuses two workers on one GPU.
        tf.config.set_visible_devices([], "GPU")
        if replicas == 4:
            two_cpus_a_worker()
        strategy = distribution.strategy("auto")
    else:
        logical_devices(replicas)
        strategy = distribution.strategy("mirrored" if replicas > 1 else "none")
    assert strategy.num_replicas_in_sync == replicas
    results = {"compare": compare, "survive": survive, "die": die}[what](
        strategy, folder
    )
    np.savez(folder / "results.npz", **results)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
