"""The benchmark's workloads that train."""

import tempfile

import keras
import numpy as np
import tensorflow as tf

from moco_keras import (
    Checkpoint,
    MoCo,
    augmentations,
    build_encoder,
    distribution,
    optimizers,
    pixel_format,
)
from moco_keras.data import batching, inputs
from moco_keras.distribution import accelerators
from moco_keras.momentum import MomentumUpdate
from moco_keras.recipes import _threads


def _encoder(s):
    keras.config.set_dtype_policy(s["precision"])
    splits = s["bn_splits"] // s.get("replicas", 1)
    return build_encoder("resnet18", 32, width=s["width"], bn_splits=splits)


def build_moco(s, min_area=0.08):
    """The compiled `MoCo` of the settings, for images of 32x32 pixels."""
    if "replicas" not in s:
        _threads.share_cores()  # as in the programs that train
    model = MoCo(
        _encoder(s),
        augmentations.cifar(32, min_area=min_area),
        queue_size=s["queue_size"],
        momentum=0.99,
        temperature=0.1,
        shuffle=s.get("shuffle", "replicas"),
    )
    model.compile(
        optimizer=optimizers.SGD(0.03, momentum=0.9, l2=5e-4),
        jit_compile=s.get("jit", "auto"),
    )
    return model


def random_pixels(*shape, seed=0):
    """An uint8 array of this shape."""
    return np.random.default_rng(seed).integers(0, 256, shape, "uint8")


def _fit(model, batches, s):
    """Repeats `fit` on the same batches, kept in memory."""
    batches = batching.without_autotuning(
        tf.data.Dataset.from_tensors(batches).repeat(s["steps"])
    )

    def run():
        model.fit(batches, shuffle=False, verbose=0)

    return run, s["steps"] * s["batch_size"]


def step(s):
    """Steps of MoCo on ready views, the momentum update included."""
    model = build_moco(s)
    shape = (s["batch_size"], 32, 32, 3)
    views = tuple(
        tf.constant(random_pixels(*shape, seed=seed), "float32")
        for seed in range(2)
    )
    return _fit(model, views, s)


def supervised(s):
    """Steps of the same encoder with labels: what MoCo cannot beat."""
    model = _encoder(s)
    model.compile(
        optimizer=optimizers.SGD(0.03, momentum=0.9, l2=5e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    images = tf.constant(random_pixels(s["batch_size"], 32, 32, 3), "float32")
    labels = tf.constant(np.arange(s["batch_size"]) % 10)
    return _fit(model, (images, labels), s)


def end_to_end(s):
    """Steps of training, as many as 10,000 images make, on images in memory."""
    model = build_moco(s, min_area=0.2)
    images = np.load(s["images"])
    steps = len(images) // s["batch_size"]
    images = np.resize(images, (s["num_images"], *images.shape[1:]))

    def run():
        model.fit(
            images,
            batch_size=s["batch_size"],
            steps_per_epoch=steps,
            verbose=0,
        )

    return run, steps * s["batch_size"]


def saved(s):
    """Steps of `fit` on images, with checkpoints if requested."""
    model = build_moco(s)
    images = random_pixels(s["steps"] * s["batch_size"], 32, 32, 3)

    def run():
        with tempfile.TemporaryDirectory() as folder:
            every = s["every"]
            callbacks = [Checkpoint(folder, every)] if every else []
            model.fit(
                images,
                batch_size=s["batch_size"],
                callbacks=callbacks,
                verbose=0,
            )

    return run, len(images)


def replicas(s):
    """Steps on images, by GPUs, or by parts of the processor in their place."""
    if not accelerators.on_gpu():
        accelerators.split_processor(s["replicas"])
    _threads.share_cores()  # before the strategy takes the devices
    name = "mirrored" if s["replicas"] > 1 else "none"
    strategy = distribution.strategy(name)
    if strategy.num_replicas_in_sync != s["replicas"]:
        raise SystemExit(
            f"This needs {s['replicas']} GPUs, or none; the environment "
            "variable CUDA_VISIBLE_DEVICES hides others."
        )
    with strategy.scope():
        model = build_moco(s)
    images = random_pixels(s["steps"] * s["batch_size"], 32, 32, 3)
    model.fit(images[: s["batch_size"]], batch_size=s["batch_size"], verbose=0)
    update = MomentumUpdate()
    update.set_model(model)
    update.on_train_begin()
    # An iterator for all turns: TensorFlow takes up to as long again as one
    # over several devices lived to let go of it.
    batches = inputs.training_batches(
        images, s["batch_size"], strategy, pixel_format.RGB
    )
    iterator = iter(batches.read(0, True, 0, 0, 0))

    def run():
        for i in range(s["steps"]):
            model.train_function(iterator)
            update.on_train_batch_end(i)

    return run, len(images)
