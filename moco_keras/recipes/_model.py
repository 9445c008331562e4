"""The model of a program, built and compiled by its settings."""

import math

import keras

import moco_keras
from moco_keras.recipes import _pixels


def build_replicated(settings, num_images, image_size, strategy):
    """The same `MoCo` on each device of a strategy, from the settings' seed."""
    # Not before: a data set that is prepared first takes random numbers.
    keras.utils.set_random_seed(settings.seed)
    with strategy.scope():
        return build_model(
            settings, num_images, image_size, strategy.num_replicas_in_sync
        )


def build_model(settings, num_images, image_size, num_replicas=1):
    """The compiled `MoCo` of the settings, for views of one size.

    Args:
        settings: `Settings`, complete.
        num_images: to train on.
        image_size: side of the images, or their height and width.
        num_replicas: devices that share each step.

    Raises:
        ValueError: if a batch is larger than all images, or cannot be divided
            among devices and groups of batch norm.
    """
    if settings.batch_size > num_images:
        raise ValueError(
            "--batch_size must be at most the number of training images. "
            f"Received: --batch_size={settings.batch_size}, {num_images} "
            "images."
        )
    encoder = moco_keras.build_encoder(
        settings.backbone,
        image_size,
        settings.projection_dim,
        head=settings.head,
        stem=settings.stem,
        width=settings.width,
        bn_splits=bn_splits_per_replica(settings, num_replicas),
        **_pixels.of_encoder(settings),
    )
    model = moco_keras.MoCo(
        encoder,
        _pixels.augmenter(settings, image_size),
        queue_size=settings.queue_size,
        momentum=settings.momentum,
        temperature=settings.temperature,
        symmetric=settings.symmetric,
        view_size=_pixels.parse_size(settings.view_size, "view_size"),
    )
    learning_rate = moco_keras.schedules.EpochCosine(
        settings.learning_rate,
        settings.steps_per_epoch or num_images // settings.batch_size,
        settings.epochs,
    )
    model.compile(
        optimizer=moco_keras.optimizers.SGD(learning_rate, l2=settings.l2)
    )
    return model


def bn_splits_per_replica(settings, num_replicas):
    """Groups of batch norm on each device; one device and many form the same.

    Args:
        settings: `Settings`.
        num_replicas: devices that share each step.

    Raises:
        ValueError: if devices, or groups, would be of unequal sizes, or groups
            of one image without a head.
    """
    of_batch = f"--batch_size={settings.batch_size}"
    per_replica, rest = divmod(settings.batch_size, num_replicas)
    if rest:
        raise ValueError(
            f"--batch_size must be a multiple of the {num_replicas} devices "
            f"that share it. Received: {of_batch}. Give "
            f"--batch_size={(per_replica + 1) * num_replicas}, for example."
        )
    groups = max(1, (settings.bn_splits or 1) // num_replicas)
    if per_replica % groups:
        devices = f", {num_replicas} devices" if num_replicas > 1 else ""
        fitting = math.gcd(per_replica, groups) * num_replicas
        raise ValueError(
            "--bn_splits must divide --batch_size into groups of one size. "
            f"Received: --bn_splits={settings.bn_splits}, {of_batch}{devices}. "
            f"Give --bn_splits={fitting}, for example, or other batches."
        )
    if settings.head == "none" and per_replica // groups < 2:
        raise ValueError(
            "Without a head, --bn_splits must leave two images or more in each "
            "group: batch norm makes a single one 0. Received: "
            f"--bn_splits={settings.bn_splits}, {of_batch}, --head=none. Lower "
            "--bn_splits, or raise --batch_size."
        )
    return groups
