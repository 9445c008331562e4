"""Channels, range and normalization of the images that a program trains on."""

import dataclasses

import numpy as np

import moco_keras
from moco_keras import arguments, data
from moco_keras.recipes import _record

# What a program may leave open until the images are known.
FITTED = "channels", "value_range", "normalize", "augmentation"
WITHOUT_COLOR = "gray", "multichannel"  # augmentations
_MEASURED = 1024  # images of a stream
_RANGES = {"uint16": "0,65535", "int16": "-32768,32767"}


def parse_range(text):
    """The range that a text such as "0,4095" says; None for None.

    Raises:
        ValueError: if it does not say one.
    """
    if text is None:
        return None
    try:
        return arguments.value_range([float(x) for x in text.split(",")])
    except ValueError:
        raise arguments.refusal(
            "--value_range", text, "two numbers in order, such as 0,4095"
        ) from None


def parse_normalization(text):
    """Mean and deviation that a text such as "0.3,0.4/0.2,0.1" says.

    Raises:
        ValueError: if it does not say as many of both.
    """
    try:
        mean, std = (
            [float(x) for x in part.split(",")] for part in text.split("/")
        )
        if len(mean) == len(std):
            return mean, std
    except ValueError:
        pass
    raise arguments.refusal(
        "--normalize",
        text,
        "auto, or the channels' means and deviations, such as 0.3,0.4/0.2,0.1",
    )


def completed(settings, images):
    """The settings, completed by what fits the images.

    A run that is resumed keeps what it began with.

    Args:
        settings: `Settings`, None or "auto" for what is to be chosen.
        images: `_data.Images`.

    Raises:
        ValueError: if the range of the pixels must be given, or a setting does
            not fit the images.
    """
    pixels = images.bank.images
    channels, dtype = pixels.shape[-1], pixels.dtype.name
    chosen = {
        "channels": channels,
        "value_range": _RANGES.get(dtype),
        "normalize": None,
        "augmentation": _augmentation_of(channels),
    }
    for name in FITTED:
        given = getattr(settings, name)
        before = None
        if settings.run_dir:
            before = _record.recorded_setting(settings.run_dir, name)
        if given not in (None, "auto"):
            chosen[name] = given
        elif before is not None:
            chosen[name] = before
    if dtype == "float32" and chosen["value_range"] is None:
        raise ValueError(
            "--value_range must be given for pixels of type float32: the "
            f"darkest and the brightest value. Received: {images.train.source}"
            f", with pixels from {pixels.min():g} to {pixels.max():g}."
        )
    measured = settings.normalize == "auto" or channels != 3
    settings = dataclasses.replace(settings, **chosen)
    if settings.normalize is None and (measured or settings.value_range):
        normalize = _measured(settings, images.train)
        settings = dataclasses.replace(settings, normalize=normalize)
    _check(settings, channels)
    return settings


def _augmentation_of(channels):
    return {1: "gray", 3: "moco_v2"}.get(channels, "multichannel")


def _check(settings, channels):
    """Refuses settings that do not fit images of so many channels."""
    if settings.channels != channels:
        raise ValueError(
            "--channels must be those of the images. Received: "
            f"--channels={settings.channels}, images of {channels}."
        )
    fitting = [*WITHOUT_COLOR] if channels == 1 else ["multichannel"]
    if channels != 3 and settings.augmentation not in fitting:
        raise ValueError(
            f"--augmentation must be {' or '.join(fitting)} for images of "
            f"{channels} channel{'s' * (channels > 1)}. Received: "
            f"--augmentation={settings.augmentation}. Give {fitting[0]}."
        )
    if settings.turns and settings.augmentation not in WITHOUT_COLOR:
        raise ValueError(
            f"--turns needs --augmentation={' or '.join(WITHOUT_COLOR)}. "
            f"Received: --augmentation={settings.augmentation}."
        )


def _measured(settings, train):
    """Mean and deviation of each channel, as `parse_normalization` takes it.

    Args:
        settings: `Settings`.
        train: `data.ImageSet`, or a `data.ImageStream` of which some images are
            measured.
    """
    if isinstance(train, data.ImageStream):
        count = min(_MEASURED, train.num_examples)
        train = train.load(count, image_size=settings.image_size)
    low, high = parse_range(settings.value_range) or (0, 255)
    sums = np.zeros((2, train.images.shape[-1]))
    for start in range(0, len(train.images), _MEASURED):
        pixels = train.images[start : start + _MEASURED].astype("float64")
        parts = (pixels - low) / (high - low)
        sums += parts.sum((0, 1, 2)), (parts**2).sum((0, 1, 2))
    mean, squares = sums / (train.images.size / train.images.shape[-1])
    std = np.sqrt(np.maximum(squares - mean**2, 1e-12))
    return "/".join(",".join(f"{x:.6g}" for x in part) for part in (mean, std))


def of_encoder(settings):
    """Arguments of `build_encoder` on pixels, a dict.

    Args:
        settings: `Settings`.
    """
    mean = std = None
    if settings.normalize is not None:
        mean, std = parse_normalization(settings.normalize)
    return {
        "channels": settings.channels or 3,
        "value_range": parse_range(settings.value_range),
        "mean": mean,
        "std": std,
    }


def augmenter(settings, image_size):
    """The pipeline of random views of the settings.

    Args:
        settings: `Settings`.
        image_size: as in `augmentations.moco_v2`.
    """
    name = settings.augmentation or _augmentation_of(settings.channels or 3)
    more = {"turns": settings.turns} if name in WITHOUT_COLOR else {}
    return getattr(moco_keras.augmentations, name)(
        image_size,
        min_area=settings.min_area,
        value_range=parse_range(settings.value_range),
        **more,
    )
