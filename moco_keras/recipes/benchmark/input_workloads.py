"""The benchmark's workloads that read and augment images."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from moco_keras import augmentations, data, distribution
from moco_keras.data import batching, inputs
from moco_keras.pixel_format import RGB
from moco_keras.recipes.benchmark.training_workloads import random_pixels


def _epoch(batches, num_images):
    def run():
        for _ in batches:
            pass

    return run, num_images


def augment_32(s):
    """Two views of small images in memory."""
    images = tf.constant(random_pixels(s["batch_size"], 32, 32, 3))
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
        images, s["batch_size"], distribution.strategy("none"), RGB
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
    batches = batching.without_autotuning(
        stream.dataset.shuffle(10_000)
        .batch(s["batch_size"])
        .prefetch(tf.data.AUTOTUNE)
    )
    read_once, num_images = _epoch(batches, stream.num_examples)

    def run():
        for _ in range(s["epochs"]):
            read_once()

    return run, s["epochs"] * num_images
