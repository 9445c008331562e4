"""Settings for some images, some minutes, and this machine, with reasons."""

import dataclasses
import math
from typing import NamedTuple

import keras

from moco_keras import MoCo, distribution
from moco_keras.distribution import accelerators
from moco_keras.files.progress import duration
from moco_keras.recipes import (
    _data,
    _defaults,
    _doctor_trial,
    _pixels,
    _pretrain,
    image_folder,
)
from moco_keras.recipes.image_folder import FolderSettings

_LEAST = 16  # pixels on a side of the views
_SMALL = 48  # pixels on a side, up to which views have the images' own size
_STEP = 16  # pixels; the side of larger views is a multiple of them
_WIDTHS = 16, 32, 64  # of a ResNet-18 on a CPU, which are tried in turn
_SLOWER = 2  # times as long a network of twice the width takes, at least
# Small images are trained with the settings of the paper's CIFAR-10 notebook:
# the blur of MoCo v2 would leave little of them.
_NOTEBOOK = {
    "head": "linear",
    "augmentation": "cifar",
    "temperature": 0.1,
    "l2": 5e-4,
}
_MARGIN = 0.1  # of the range that was seen, for what was not
_MEASURED = 1024  # images, for mean and deviation
_SLOW = 0.05  # seconds to read an image, beside which no network is slow
_ENOUGH = 400_000  # images in all epochs, for which a network is chosen


class Trial(NamedTuple):
    """A network that was tried.

    Attributes:
        settings: `FolderSettings`, complete.
        model: that of the settings.
        step_seconds: seconds of a step.
        reading_seconds: of it, those that cutting the views alone would take.
        images: that it trains on in the time there is.
    """

    settings: FolderSettings
    model: MoCo
    step_seconds: float
    reading_seconds: float
    images: int

    @property
    def limited_by_reading(self):
        """Whether the views take most of a step."""
        return self.reading_seconds > self.step_seconds / 2


class Advice(NamedTuple):
    """What the doctor advises.

    Attributes:
        settings: `FolderSettings`, complete.
        reasons: why, by the names of settings.
    """

    settings: FolderSettings
    reasons: dict[str, str]


def try_networks(found, side, minutes):
    """Tries networks on this machine, the wider ones if there is time for them.

    Args:
        found: `_doctor_look.Found`.
        side: of the images in pixels, the shorter one, in the median.
        minutes: that the training run may take.

    Returns:
        The `Trial` of the network to take, and that of a wider one that is too
        slow, or None.

    Raises:
        ValueError: if memory has no room for any of the networks.
    """
    on_gpu = accelerators.on_gpu()
    strategy = distribution.strategy()
    size = _image_size(side, _defaults.OF_DEVICE[on_gpu]["image_size"])
    networks = [("resnet18", width) for width in _WIDTHS]
    if on_gpu:
        networks = [("resnet18" if size <= _SMALL else "resnet50", 64)]
    sized = dataclasses.replace(
        image_folder.DEFAULTS,
        image_size=size,
        **(_NOTEBOOK if size <= _SMALL else {"augmentation": "moco_v2"}),
    )
    sized = _with_pixels(sized, found)
    image_seconds = 0
    if found.folder is not None:  # or the images are held in memory
        image_seconds = _doctor_trial.reading_seconds(sized, found.stream)
    if image_seconds > _SLOW:
        networks = networks[-1:]
    enough, best = _enough(found), None
    for backbone, width in networks:
        asked = dataclasses.replace(sized, backbone=backbone, width=width)
        asked = _defaults.for_device(asked, strategy)
        keras.config.set_dtype_policy(asked.precision)
        try:
            settings, model = _pretrain.build(
                asked, found.num_images, size, strategy
            )
        except ValueError:  # memory has no room for it
            if best is None:
                raise
            break
        step = _doctor_trial.step_seconds(settings, model, found)
        trial = Trial(
            settings,
            model,
            step,
            settings.batch_size * image_seconds,
            round(settings.batch_size * 60 * minutes / step),
        )
        # The network matters little to the time if reading takes most of it.
        is_fast = trial.images >= enough or trial.limited_by_reading
        if best is not None and not is_fast:
            return best, trial
        best = trial
        if not trial.limited_by_reading and trial.images < _SLOWER * enough:
            break
    return best, None


def _with_pixels(settings, found):
    """The settings with what pixels need that are not RGB of 8 bits."""
    stream = found.stream
    if (stream.channels, stream.image_dtype) == (3, "uint8"):
        return settings
    if stream.image_dtype != "uint8":
        settings = dataclasses.replace(settings, value_range=_range(found))
    if stream.channels != 3:
        settings = dataclasses.replace(settings, augmentation=None)
    count = min(_MEASURED, stream.num_examples)
    some = stream.load(count, image_size=settings.image_size)
    fits = _pixels.what_fits(settings, _data.Images(some, some, some))
    return dataclasses.replace(settings, **fits)


def _range(found):
    """The range of the pixels, as --value_range has it."""
    low = min(look.low for look in found.looks)
    high = max(look.high for look in found.looks)
    if low >= 0 and found.stream.image_dtype == "uint16":
        # That of a camera of so many bits.
        return f"0,{2 ** math.ceil(math.log2(max(high, 1) + 1)) - 1}"
    if not found.whole or found.files[1]:  # others may be darker or brighter
        low, high = (
            low - _MARGIN * (high - low),
            high + _MARGIN * (high - low),
        )
    return f"{low!r},{high if high > low else low + 1!r}"


def _enough(found):
    """How many images a network must train on in the time there is."""
    most_epochs = _defaults.OF_EPOCHS[accelerators.on_gpu()][2]
    return min(_ENOUGH, most_epochs * found.num_images)


def _image_size(side, most):
    """Side of the views, for images with this shorter side."""
    if side <= _SMALL:
        return max(math.floor(side), _LEAST)
    return min(math.floor(side / _STEP) * _STEP, most)


def of(found, best, wider, side, minutes):
    """The advice that follows from trials.

    Args:
        found, side, minutes: as in `try_networks`.
        best, wider: what `try_networks` returned.

    Returns:
        An `Advice`.
    """
    settings, step = best.settings, best.step_seconds
    steps = found.num_images // settings.batch_size
    _, least, most = _defaults.OF_EPOCHS[accelerators.on_gpu()]
    epochs = min(max(1, math.floor(60 * minutes / (steps * step))), most)
    settings = dataclasses.replace(settings, epochs=epochs)
    reasons = _reasons(found, best, wider, side, minutes)
    reasons["epochs"] = f"there is time for them in {minutes:g} minutes"
    if epochs == most:
        reasons["epochs"] = "more of them rarely help"
    if steps * step > 60 * minutes:
        reasons["epochs"] = (
            f"one epoch takes {duration(steps * step)}, longer than the time "
            "there is"
        )
    if epochs < least:
        reasons["epochs"] += (
            f"; {least} or more are better, and would take "
            f"{duration(least * steps * step)}"
        )
    return Advice(settings, reasons)


def _reasons(found, best, wider, side, minutes):
    """Why these settings, by the names of their flags."""
    settings = best.settings
    device = "a GPU" if accelerators.on_gpu() else "a CPU"
    size = f"the shorter side of the images, {side:g} pixels in the median"
    if settings.image_size > side:
        size += ", enlarged for the network"
    elif settings.image_size < side:
        size += f", as far as {device} has time for it"
    width = f"in {minutes:g} minutes it trains on {best.images:,} images here"
    if wider:
        width += (
            f"; width {wider.settings.width} would train on {wider.images:,}, "
            f"and {_enough(found):,} are enough"
        )
    steps = found.num_images // settings.batch_size
    method = "as in MoCo v2"
    small = settings.image_size <= _SMALL
    if small:
        method = (
            "as in the paper's notebook, which trains on images of 32 pixels"
        )
    reasons = {
        "image_size": size,
        "backbone": f"{device} has time for it",
        "stem": "what fits the size of the views",
        "width": width,
        "head": method,
        "augmentation": method,
        "temperature": method,
        "l2": method,
        "min_area": "views that show less of an image need longer training",
        "batch_size": "as large as it can be while an epoch keeps enough "
        f"steps; here it has {steps:,}",
        "bn_splits": "groups of "
        f"{settings.batch_size // settings.bn_splits} images, which stand for "
        "the GPUs of the paper",
        "queue_size": "half of the images or fewer, but never less than a "
        "batch: a longer queue would hold older keys of the query's own image",
        "momentum": "the key encoder is a mean of the last "
        f"{1 / (1 - settings.momentum):.0f} steps or so",
        "learning_rate": "0.03 for a batch of 256, and in proportion",
    }
    if settings.channels is not None:
        reasons |= {
            "channels": "those of the files",
            "normalize": "the mean and the deviation of each channel",
        }
        if settings.value_range:
            reasons["value_range"] = "that of the images that were looked at"
        if settings.channels != 3:
            reasons["augmentation"] = "for images without colors"
    if found.folder is None:  # the program has no such flag
        del reasons["image_size"]
    return reasons
