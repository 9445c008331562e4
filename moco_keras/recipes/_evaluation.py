"""What a run evaluates its encoder by, and compares it with."""

import numpy as np

import moco_keras
from moco_keras.data import checks
from moco_keras.evaluation import features, knn
from moco_keras.evaluation import linear_probe as probe


def check_evaluation(images):
    """Refuses what cannot be evaluated, before it is trained on.

    Raises:
        ValueError: if there are no images to compare with or to test with.
    """
    for image_set, what in (
        (images.bank, "to compare with"),
        (images.test, "to test with"),
    ):
        if not len(image_set.images):
            raise ValueError(
                "A run compares test images with others to evaluate its "
                "encoder, and needs at least one of each. Received: no "
                f"images {what}, of {images.train.num_examples} in all. Add "
                "images, or lower --test_examples."
            )


def check_pixels(images, pixels):
    """Refuses images that the encoder would refuse once it is trained.

    Args:
        images: `_data.Images`.
        pixels: what the encoder takes, a `PixelFormat`.

    Raises:
        ValueError: as `checks.check_images`.
    """
    for image_set in (images.bank, images.test):
        checks.check_images(image_set.images, pixels=pixels)


def why_no_knn(images):
    """Why there is no kNN, and how to get one; None if there is one."""
    if not (images.bank.labelled and images.test.labelled):
        return (
            "not all images to evaluate with have a class. Put the images of "
            "each class into a folder of their own."
        )
    if len(np.unique(images.bank.labels)) < 2:
        return (
            "all images to compare with are of one class, so that any encoder "
            "would find it. Put the images of each class into a folder of "
            "their own, and give --images the folder that holds these."
        )
    return None


def monitor(settings, model, images):
    """The `KNNMonitor` of a run, or None where there is no kNN.

    Args:
        settings: `Settings`.
        model: that is trained.
        images: `_data.Images`.
    """
    if why_no_knn(images):
        return None
    every = settings.knn_every
    monitor = moco_keras.callbacks.KNNMonitor(images.bank, images.test, every)
    monitor.set_model(model)
    return monitor


def is_probed(settings, monitor):
    """Whether a linear probe follows the training: of labels of a folder.

    Args:
        settings: `Settings`.
        monitor: that of `monitor`.
    """
    return monitor is not None and bool(getattr(settings, "labelled", None))


def linear_probe(images, features):
    """The accuracy of a linear classifier of the features.

    Args:
        images: `_data.Images`.
        features: of their bank and of their test images, (N, D) and (M, D).
    """
    _, bank, test, _ = images
    return probe.accuracy(features[0], bank.labels, features[1], test.labels)


def raw_pixel_accuracy(images):
    """The accuracy of kNN on pixels in place of features."""
    _, bank, test, _ = images
    return knn.accuracy(
        features.unit_rows(_few_pixels(bank.images)),
        bank.labels,
        features.unit_rows(_few_pixels(test.images)),
        test.labels,
    )


def _few_pixels(images):
    """Of large images every n-th pixel: thousands would fill the memory."""
    step = max(1, images.shape[1] // 32)
    return images[:, ::step, ::step]


def print_baselines(images, metrics):
    """Prints what to compare a training run with, or why there is nothing.

    Args:
        images: `_data.Images`.
        metrics: with "knn_raw_pixels" and "knn_untrained" if there is a kNN.
    """
    if why := why_no_knn(images):
        print(f"No kNN: {why}")
        return
    print(
        f"kNN ({describe_k(images.bank)}) of {len(images.test.images)} test "
        f"images: of raw pixels {metrics['knn_raw_pixels']:.3f}, of the "
        f"untrained encoder {metrics['knn_untrained']:.3f}"
    )


def describe_k(bank):
    """How many neighbors vote, in words."""
    k = knn.default_k(bank.labels)
    return f"k={k}" if k == 200 else f"k={k}, the smallest class's images"
