"""Trains small models under a strategy, in a process of its own.

    python tests/replicas.py REPLICAS FOLDER

One strategy a process: TensorFlow's collectives on a CPU break with the second.
"""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from moco_keras import (
    MoCo,
    SplitBatchNormalization,
    augmentations,
    build_encoder,
    distribution,
    export_encoder,
    optimizers,
)

BATCH, STEPS = 16, 10
# By name: splits of batch norm of one device (0: no batch norm), settings.
RUNS = {
    "plain": (0, {}),
    "symmetric": (0, {"symmetric": True}),
    "v2": (0, {"head": "mlp"}),
    "in order": (0, {"shuffle": "none"}),
    "batch norm": (2, {}),  # of two replicas, each has its own
}


def make_model(splits=0, head="linear", queue_size=37, **settings):
    """A compiled model for images of 8 pixels."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, strides=2)(x)
    if splits:
        x = SplitBatchNormalization(splits)(x)
    backbone = keras.Model(inputs, keras.layers.ReLU()(x))
    model = MoCo(
        build_encoder(backbone, 8, 4, head=head),
        augmentations.cifar(8, min_area=0.5),
        queue_size=queue_size,
        temperature=0.2,
        momentum=0.9,
        **settings,
    )
    model.compile(optimizer=optimizers.SGD(0.1))
    return model


def make_images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), "uint8")


def train(model, steps=STEPS):
    """Trains in order; returns what there is to compare, by name."""
    losses = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: losses.append(dict(logs))
    )
    model.fit(
        make_images(steps * BATCH),
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
        results[f"{i} {variable.path}"] = variable.numpy()
    return results


def copies(variable):
    """The values that the replicas hold of a variable."""
    return [copy.numpy() for copy in getattr(variable.value, "values", ())]


def logical_cpus(count):
    """Makes parts of the processor that TensorFlow takes for devices."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration() for _ in range(count)]
    )


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
    """Saves and exports a model; returns what it predicts."""
    model.save(folder / "model.keras")
    export_encoder(model, folder / "encoder")
    return model.predict(make_images(19), batch_size=8, verbose=0)


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


def main(replicas, folder):
    logical_cpus(replicas)
    strategy = distribution.strategy("mirrored" if replicas > 1 else "none")
    results = {}
    for name, (splits, settings) in RUNS.items():
        with strategy.scope():
            model = make_model(splits and splits // replicas, **settings)
        for key, value in train(model).items():
            results[f"{name}/{key}"] = value
    if replicas == 2:
        with strategy.scope():
            model = make_model(splits=1)
        train(model, steps=50)
        for variable in model.variables:
            first, *others = copies(variable)
            same = [np.array_equal(first, other) for other in others]
            results[f"same/{variable.path}"] = same
        results["predicted"] = leave(model, folder)
        results |= complaints(strategy)
    if replicas == 4:
        with strategy.scope():
            for shuffle in ("replicas", "none"):
                results[f"cheat/{shuffle}"] = cheat(shuffle)
    np.savez(folder / "results.npz", **results)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
