"""Channels, range and normalization of the images that a program trains on."""

import warnings

import numpy as np

import moco_keras
from moco_keras import arguments, data

# What a program may leave open until the images are known.
FITTED = "channels", "value_range", "normalize", "augmentation"
WITHOUT_COLOR = "gray", "multichannel"  # augmentations
_MEASURED = 1024  # images of a stream
_CHUNK = 64  # images at a time
_SMALL_PART = 1 / 4  # of the range of a type
_CONSTANT = 1e-5  # of the range, below which a channel does not vary
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


def parse_size(size, name="image_size"):
    """A side, or the (height, width) that a text such as "128x256" says.

    Args:
        size: an integer, a text, or None.
        name: of the setting.

    Raises:
        ValueError: if it says neither.
    """
    if size is None:
        return None
    try:
        sides = [int(side) for side in str(size).split("x")]
        return arguments.sides(image_size=sides if len(sides) > 1 else sides[0])
    except (ValueError, TypeError):
        raise arguments.refusal(
            f"--{name}",
            size,
            "a side in pixels, or height and width, such as 128x256",
        ) from None


def checked_size(text, turns, name):
    """The side that a text says, or the text itself if it says two.

    Raises:
        ValueError: as `parse_size`, or if such views are to be turned.
    """
    height, width = parse_size(text, name)
    if height == width:
        return height
    if turns:
        raise ValueError(
            "--turns needs views that are square. Received: --turns with "
            f"--{name}={text}. Give one side, or leave --turns out."
        )
    return text


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


def what_fits(settings, images):
    """Settings that fit the images, a dict; with those that were given.

    Args:
        settings: `Settings`, None or "auto" for what is to be chosen.
        images: `_data.Images`.

    Raises:
        ValueError: if the range of the pixels must be given, or a pixel is no
            number.
    """
    pixels = images.bank.images
    channels, dtype = pixels.shape[-1], pixels.dtype.name
    value_range = settings.value_range or _RANGES.get(dtype)
    if dtype == "float32" and value_range is None:
        raise ValueError(
            "--value_range must be given for pixels of type float32: the "
            f"darkest and the brightest value. Received: {images.train.source}"
            f", with pixels from {pixels.min():g} to {pixels.max():g}."
        )
    if settings.value_range is None and value_range:
        _warn_of_few_levels(pixels, parse_range(value_range))
    normalize = settings.normalize
    if normalize == "auto" or (
        normalize is None and (channels != 3 or value_range)
    ):
        normalize = _measured(settings, value_range, images.train)
    return {
        "channels": channels,
        "value_range": value_range,
        "normalize": normalize,
        "augmentation": settings.augmentation or _augmentation_of(channels),
    }


def _warn_of_few_levels(pixels, value_range):
    """Warns of 12 bits in 16, for example, which are nearly black among 16."""
    low, high = int(pixels.min()), int(pixels.max())
    least, most = value_range
    if high - low < _SMALL_PART * (most - least):
        warnings.warn(
            f"The pixels of {len(pixels):,} images go from {low:,} to "
            f"{high:,}, a small part of the range of {pixels.dtype}. Give the "
            "range that the images can have, with --value_range=LEAST,GREATEST:"
            " contrast, gamma and pictures depend on it.",
            stacklevel=2,
        )


def _augmentation_of(channels):
    return {1: "gray", 3: "moco_v2"}.get(channels, "multichannel")


def check(settings, images):
    """Refuses settings that do not fit the images.

    Args:
        settings: `Settings`, completed by `what_fits`.
        images: `_data.Images`.

    Raises:
        ValueError: saying which.
    """
    channels = images.bank.images.shape[-1]
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


def _measured(settings, value_range, train):
    """Mean and deviation of each channel, as `parse_normalization` takes it.

    A channel that is the same everywhere has a deviation of 1.

    Args:
        settings: `Settings`.
        value_range: as in them.
        train: `data.ImageSet`, or a `data.ImageStream` of which some images are
            measured.
    """
    if isinstance(train, data.ImageStream):
        count = min(_MEASURED, train.num_examples)
        train = train.load(count, image_size=parse_size(settings.image_size))
    low, high = parse_range(value_range) or (0, 255)
    sums = np.zeros((2, train.images.shape[-1]))
    for start in range(0, len(train.images), _CHUNK):
        pixels = train.images[start : start + _CHUNK].astype("float64")
        parts = (pixels - low) / (high - low)
        sums += parts.sum((0, 1, 2)), (parts**2).sum((0, 1, 2))
    mean, squares = sums / (train.images.size / train.images.shape[-1])
    if not np.isfinite(sums).all():
        raise ValueError(
            "Images must have pixels that are numbers. Received: NaN or "
            f"infinity in {train.source}. Leave such images out."
        )
    std = np.sqrt(np.maximum(squares - mean**2, 0))
    std = np.where(std < _CONSTANT, 1, std)
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
        image_size: as in `augmentations.moco_v2`; that of the views, unless
            the settings have another.
    """
    view_size = parse_size(settings.view_size, "view_size")
    name = settings.augmentation or _augmentation_of(settings.channels or 3)
    more = {"turns": settings.turns} if name in WITHOUT_COLOR else {}
    return getattr(moco_keras.augmentations, name)(
        view_size or image_size,
        min_area=settings.min_area,
        value_range=parse_range(settings.value_range),
        **more,
    )
