"""The benchmark's work in moco_keras."""

import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from moco_keras import (
    Checkpoint,
    MoCo,
    augmentations,
    build_encoder,
    data,
    distribution,
    optimizers,
)
from moco_keras.data import inputs
from moco_keras.distribution import accelerators
from moco_keras.evaluation import knn as classifier
from moco_keras.key_queue import KeyQueue
from moco_keras.momentum import MomentumUpdate
from moco_keras.recipes import _threads
from moco_keras.recipes.benchmark import serving_workloads, timing


def _encoder(s):
    keras.config.set_dtype_policy(s["precision"])
    splits = s["bn_splits"] // s.get("replicas", 1)
    return build_encoder("resnet18", 32, width=s["width"], bn_splits=splits)


def _moco(s, min_area=0.08):
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


def _random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, "uint8")


def _fit(model, batches, s):
    """Repeats `fit` on the same batches, kept in memory."""
    batches = inputs.without_autotuning(
        tf.data.Dataset.from_tensors(batches).repeat(s["steps"])
    )

    def run():
        model.fit(batches, shuffle=False, verbose=0)

    return run, s["steps"] * s["batch_size"]


def step(s):
    """Steps of MoCo on ready views, the momentum update included."""
    model = _moco(s)
    shape = (s["batch_size"], 32, 32, 3)
    views = tuple(
        tf.constant(_random_pixels(*shape, seed=seed), "float32")
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
    images = tf.constant(_random_pixels(s["batch_size"], 32, 32, 3), "float32")
    labels = tf.constant(np.arange(s["batch_size"]) % 10)
    return _fit(model, (images, labels), s)


def _epoch(batches, num_images):
    def run():
        for _ in batches:
            pass

    return run, num_images


def augment_32(s):
    """Two views of small images in memory."""
    images = tf.constant(_random_pixels(s["batch_size"], 32, 32, 3))
    augmenter = augmentations.cifar(32)

    @tf.function
    def two_views():
        return augmenter(images), augmenter(images)

    return two_views, s["batch_size"]


def augment_224(s):
    """Two views of photographs, decoded from JPEG in memory."""
    files = [path.read_bytes() for path in sorted(Path(s["jpegs"]).iterdir())]
    images = (
        tf.data.Dataset.from_tensor_slices(files)
        .repeat(s["epochs"])
        .map(lambda file: tf.io.decode_jpeg(file, channels=3))
    )
    views = data.two_views(images, augmentations.moco_v2(224), s["batch_size"])
    return _epoch(views, s["epochs"] * len(files))


def input_pipeline(s):
    """Epochs of two views, without a model."""
    images = np.load(s["images"])
    augmenter = augmentations.cifar(32, min_area=0.2)
    batches = inputs.training_batches(
        images, s["batch_size"], distribution.strategy("none")
    )
    views = (
        batches.read(0, True, 0, 0, 0)
        .map(lambda x: (augmenter(x), augmenter(x)))
        .take(batches.steps)
    )
    return _epoch(views, batches.steps * s["batch_size"])


def read_files(s):
    """Epochs of images that are read from files and shuffled as they come."""
    stream = data.read_named(
        s["data"], data_dir=s["large_data_dir"], examples=s["num_images"]
    )
    batches = inputs.without_autotuning(
        stream.dataset.shuffle(10_000)
        .batch(s["batch_size"])
        .prefetch(tf.data.AUTOTUNE)
    )
    read_once, num_images = _epoch(batches, stream.num_examples)

    def run():
        for _ in range(s["epochs"]):
            read_once()

    return run, s["epochs"] * num_images


def end_to_end(s):
    """Steps of training, as many as 10,000 images make, on images in memory."""
    model = _moco(s, min_area=0.2)
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
    """Steps of `fit` on images, with checkpoints if told so."""
    model = _moco(s)
    images = _random_pixels(s["steps"] * s["batch_size"], 32, 32, 3)

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
        model = _moco(s)
    images = _random_pixels(s["steps"] * s["batch_size"], 32, 32, 3)
    model.fit(images[: s["batch_size"]], batch_size=s["batch_size"], verbose=0)
    update = MomentumUpdate()
    update.set_model(model)
    update.on_train_begin()
    # An iterator for all turns: TensorFlow takes up to as long again as one
    # over several devices lived to let go of it.
    batches = inputs.training_batches(images, s["batch_size"], strategy)
    iterator = iter(batches.read(0, True, 0, 0, 0))

    def run():
        for i in range(s["steps"]):
            model.train_function(iterator)
            update.on_train_batch_end(i)

    return run, len(images)


def momentum_update(s):
    """Moves of the key encoder."""
    update = MomentumUpdate()
    model = _moco(s)
    model.optimizer.build(model.trainable_variables)
    update.set_model(model)
    update.on_train_begin()

    def run():
        for i in range(s["steps"]):
            update.on_train_batch_end(i)

    return run, 0


def queue(s):
    """The loss against the queue, its gradient, and the queue's advance."""
    keys = KeyQueue(s["queue_size"], 128)
    q, k = tf.math.l2_normalize(
        tf.random.normal((2, s["batch_size"], 128)), axis=2
    )

    @tf.function
    def advance():
        with tf.GradientTape() as tape:
            tape.watch(q)
            losses, _ = keys.contrast(q, k, 0.1)
            loss = tf.reduce_mean(losses)
        gradient = tape.gradient(loss, q)
        keys.enqueue(k)
        return gradient

    def run():
        for _ in range(s["steps"]):
            advance()

    return run, s["steps"] * s["batch_size"]


def knn(s):
    """Classification of features by their neighbours."""
    rng = np.random.default_rng(0)
    bank, queries = (
        rng.normal(size=(n, 512)).astype("float32")
        for n in (s["bank"], s["queries"])
    )
    bank, queries = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries)
    )
    labels = rng.integers(0, 10, s["bank"])

    def run():
        classifier.predict(bank, labels, queries)

    return run, s["queries"]


if __name__ == "__main__":
    works = (
        step,
        supervised,
        augment_32,
        augment_224,
        input_pipeline,
        read_files,
        end_to_end,
        saved,
        replicas,
        serving_workloads.serve_encoded,
        serving_workloads.decode_and_encode,
        serving_workloads.serve_images,
        serving_workloads.encode_images,
        serving_workloads.load_export,
        momentum_update,
        queue,
        knn,
    )
    timing.serve(
        works,
        ("keras", "tensorflow"),
        tf.profiler.experimental.Profile,
    )
