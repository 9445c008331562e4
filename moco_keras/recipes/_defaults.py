"""Settings that fit the images and the device where no flag is given."""

import dataclasses
import json
import math
import sys

import tensorflow as tf

from moco_keras import distribution
from moco_keras.distribution import accelerators
from moco_keras.models import encoders, resnet
from moco_keras.recipes import _pixels, _record, _settings
from moco_keras.recipes._memory import (
    Memory,
    check_model,
    gigabytes,
    num_memories,
)

# Where a flag of `_settings.FITTED` is not given. docs/training.md has the
# same tables.
OF_DEVICE = {  # by whether it is a GPU
    False: {"backbone": "resnet18", "width": 64, "image_size": 96},
    True: {"backbone": "resnet50", "width": 64, "image_size": 224},
}
OF_IMAGES = [
    # fewer images than: batch size, momentum
    (2_000, 64, 0.99),
    (20_000, 128, 0.99),
    (200_000, 256, 0.99),
    (math.inf, 256, 0.999),
]
OF_EPOCHS = {  # by whether it is a GPU: images in all epochs; least, most
    False: (1_000_000, 5, 400),
    True: (4_000_000, 200, 800),
}
_KEPT = (  # by a run that is resumed
    "precision",
    "steps_per_epoch",
    *_settings.FITTED,
    *_pixels.FITTED,
)
_NAMES = ("projection_dim", *_KEPT)
_LETTERS = 2**16  # at most, in which the chief tells the others its choice
_LARGEST_QUEUE = 65536
_LEARNING_RATE = 0.03 / 256  # of each image of the batch
_GROUP = 32  # images that batch norm takes together, on a GPU in the papers
_SMALLEST_BATCH = 8  # that is chosen by default, of so many images


def for_device(settings, strategy):
    """The settings, completed by what fits the chief's device.

    A run that is resumed keeps what it began with, on any device.
    """

    def choose():
        chosen = {
            "precision": accelerators.default_precision(),
            **OF_DEVICE[accelerators.on_gpu()],
        }
        if settings.run_dir:
            for name in _KEPT:
                before = _record.recorded_setting(settings.run_dir, name)
                if before is not None:
                    chosen[name] = before
        return chosen

    return complete(settings, choose, strategy)


def for_pixels(settings, images, strategy):
    """The settings, completed by what fits the pixels of the images.

    Args:
        settings: `Settings`.
        images: `_data.Images`.
        strategy: that trains.

    Raises:
        ValueError: if a setting must be given, or does not fit.
    """
    settings = complete(
        settings, lambda: _pixels.what_fits(settings, images), strategy
    )
    _pixels.check(settings, images)
    return settings


def for_images(settings, num_images, strategy):
    """The settings, completed by what fits the number of images.

    Raises:
        ValueError: on the chief, if a number cannot be chosen, or if the model
            alone needs more memory than is free.
    """

    def choose():
        replicas = strategy.num_replicas_in_sync
        fits = what_fits(settings, num_images, accelerators.on_gpu(), replicas)
        fits["projection_dim"] = _projection_dim(settings)
        given = {n: v for n, v in vars(settings).items() if v is not None}
        check_model(dataclasses.replace(settings, **{**fits, **given}))
        return fits

    return complete(settings, choose, strategy)


def what_fits(settings, num_images, on_gpu, replicas=1, most=math.inf):
    """Settings that fit a number of images.

    Args:
        settings: `Settings`, None for what is to be chosen.
        num_images: to train on.
        on_gpu: whether the device is a GPU.
        replicas: devices that share each batch.
        most: images in a batch that memory has room for.

    Returns:
        A dict, which has settings that were given, too.

    Raises:
        ValueError: if --bn_splits was given and no batch can have so many
            groups.
    """
    batch_size, momentum = next(
        row[1:] for row in OF_IMAGES if num_images < row[0]
    )
    views = 1 + settings.symmetric
    if settings.batch_size is None:
        eighth = max(num_images / 8, min(_SMALLEST_BATCH, num_images))
        keys = settings.queue_size or math.inf
        batch_size = power_of_two(min(batch_size, eighth, keys / views, most))
        step = math.lcm(replicas, settings.bn_splits or 1)
        room = min(num_images, keys / views)
        least = step if 2 * step > room else 2 * step  # no group of one image
        batch_size = max(batch_size - batch_size % step, least)
        if settings.bn_splits and step > room:
            queue = settings.queue_size
            raise ValueError(
                "--bn_splits must not be more than the training images, or "
                "than the images of a step whose keys the queue holds. "
                f"Received: --bn_splits={settings.bn_splits}, {num_images} "
                "images"
                + (f", --queue_size={queue}" if queue else "")
                + (f", {replicas} devices" if replicas > 1 else "")
                + ". Lower --bn_splits."
            )
    else:
        batch_size = settings.batch_size
    per_replica = max(1, batch_size // replicas)
    groups = max(2, batch_size // _GROUP) // replicas
    groups = max(1, min(groups, per_replica // 2))  # of two images at least
    half = min(power_of_two(num_images / 2), _LARGEST_QUEUE)
    images_seen, least, most_epochs = OF_EPOCHS[on_gpu]
    epochs = min(max(round(images_seen / num_images), least), most_epochs)
    return {
        "batch_size": batch_size,
        "bn_splits": math.gcd(groups, per_replica) * replicas,
        "queue_size": max(half, batch_size * views),
        "momentum": momentum,
        "epochs": epochs,
        "learning_rate": _LEARNING_RATE * batch_size,
    }


def for_memory(settings, asked, model, num_images, strategy):
    """The settings, with a smaller batch where memory requires it.

    A run that resumes from a checkpoint keeps its settings, with a warning.

    Args:
        settings: `Settings`, complete.
        asked: the same without those that fit the number of images.
        model: that of the settings.
        num_images: to train on.
        strategy: that trains.

    Raises:
        ValueError: on the chief, if there is not enough memory for the batch
            that was given, or for the smallest.
    """
    replicas = strategy.num_replicas_in_sync

    def choose():
        memory, free = Memory.of(model, settings), accelerators.free_memory()
        devices = num_memories(strategy)
        need = memory.needed(settings.batch_size / devices)
        if free is None or need <= free:
            return dataclasses.asdict(settings)
        if _record.is_resumed(settings):
            print(
                f"Warning: this run may need about {gigabytes(need)} of "
                f"memory, and {gigabytes(free)} are free. It resumes, because "
                "it began with these settings. If it is killed, free memory, "
                "and give the same command again.",
                file=sys.stderr,
                flush=True,
            )
            return dataclasses.asdict(settings)
        most = memory.room_for(free) * devices
        fits = what_fits(
            asked, num_images, accelerators.on_gpu(), replicas, most
        )
        if _SMALLEST_BATCH <= fits["batch_size"] <= most:
            print(
                f"--batch_size={fits['batch_size']} was chosen: for batches of "
                f"{settings.batch_size} images {gigabytes(need)} of memory "
                f"would be needed, and {gigabytes(free)} are free.",
                flush=True,
            )
            return {**fits, "projection_dim": settings.projection_dim}
        step = math.lcm(replicas, settings.bn_splits)
        most -= most % step
        height, width = model.query_encoder.input_shape[1:3]
        raise ValueError(
            "A training run must fit the memory that is free. Received: "
            f"--batch_size={settings.batch_size}, "
            f"--backbone={settings.backbone}, --width={settings.width} and "
            f"images of {height}x{width} pixels, which need about "
            f"{gigabytes(need)}; {gigabytes(free)} are free. "
            + (f"Set --batch_size={most}, or lower" if most > 0 else "Lower")
            + " --width or --view_size, or --image_size where the program has "
            "it, or take a smaller --backbone."
        )

    return complete(asked, choose, strategy)


def _projection_dim(settings):
    if settings.head == "none":
        return resnet.length(settings.backbone, settings.width)
    return encoders.PROJECTION_DIM


def complete(settings, choose, strategy):
    """The settings, completed by the chief's choice of what was not given.

    Args:
        choose: function that returns a dict of settings.
    """
    chosen = {}
    if distribution.is_chief(strategy):
        chosen = {
            name: value
            for name, value in choose().items()
            if name in _NAMES and getattr(settings, name, "") in (None, "auto")
        }
    letters = list(json.dumps(chosen).encode().ljust(_LETTERS))
    letters = distribution.broadcast(
        {"letters": tf.constant(letters, "int32")}, strategy
    )["letters"]
    chosen = json.loads(bytes(letters.numpy().tolist()))
    return dataclasses.replace(settings, **chosen)


def power_of_two(most):
    """The largest power of two that is at most a number."""
    return 2 ** math.floor(math.log2(max(most, 1)))
