"""Channels and range of the pixels that an encoder takes."""

from typing import NamedTuple

import numpy as np
from keras import layers

DTYPES = "uint8", "uint16", "int16", "float32"

_RANGE = "value_range"  # the layer that brings pixels to [0, 255]
_NORMALIZATION = "normalization"  # the layer that takes pixels in [0, 255]


class PixelFormat(NamedTuple):
    """The pixels that an encoder takes.

    Attributes:
        channels: C of images (N, H, W, C); None means any number.
        value_range: the darkest and the brightest value of images of one of
            `DTYPES`; None means uint8 from 0 to 255.
    """

    channels: int | None = 3
    value_range: tuple[float, float] | None = None

    @property
    def bounds(self):
        """The darkest and the brightest value."""
        return self.value_range or (0.0, 255.0)

    @property
    def dtypes(self):
        """Names of the types that images may have."""
        return DTYPES if self.value_range else DTYPES[:1]

    def holds(self, low, high, dtype):
        """Whether pixels from `low` to `high`, of a type, are in the range."""
        least, most = self.bounds
        off = 0
        if dtype == "float32":  # to which resizing may round them
            off = 1e-3 * (most - least)
        return least - off <= low and high <= most + off

    def __str__(self):
        """The range, in brackets."""
        low, high = self.bounds
        return f"[{low:g}, {high:g}]"


RGB = PixelFormat()


def normalized(x, value_range, mean, std):
    """Adds the layers to a Keras graph that take pixels as they are.

    Args:
        x: Keras tensor, float (N, H, W, C).
        value_range: as in `PixelFormat`.
        mean, std: of each channel, (C,), where the range is [0, 1]; or None to
            leave the pixels in [0, 255].

    Returns:
        Keras tensor, float32 (N, H, W, C).
    """
    if value_range is not None:
        low, high = value_range
        scale = 255 / (high - low)
        x = layers.Rescaling(scale, -low * scale, dtype="float32", name=_RANGE)(
            x
        )
    scale, offset = 1.0, 0.0
    if mean is not None:
        # For a row of pixels: TensorFlow is slow to repeat three numbers.
        mean, std = (np.tile(values, (x.shape[2], 1)) for values in (mean, std))
        scale, offset = (1 / 255 / std).tolist(), (-mean / std).tolist()
    return layers.Rescaling(
        scale, offset, dtype="float32", name=_NORMALIZATION
    )(x)


def normalized_as(encoder, x):
    """Adds the layers to a Keras graph that normalize as an encoder does.

    Args:
        encoder: a functional `keras.Model` from images (N, H, W, C).
        x: Keras tensor, float (N, h, w, C), of another size.

    Returns:
        Keras tensor, float32 (N, h, w, C), and the tensor (N, H, W, C) of the
        encoder that it corresponds to; `x` itself and the encoder's input if
        the encoder does not normalize.
    """
    first = _rescaling(encoder, _RANGE)
    layer = _rescaling(encoder, _NORMALIZATION)
    begins = encoder.inputs[0] if first is None else first.output
    if layer is None or layer.input is not begins:
        return x, encoder.inputs[0]
    if first is not None:
        x = layers.Rescaling(first.scale, first.offset, dtype="float32")(x)
    scale, offset = (
        # A row of pixels, which are all alike.
        np.resize(number, x.shape[2:]).tolist() if np.ndim(number) else number
        for number in (layer.scale, layer.offset)
    )
    x = layers.Rescaling(scale, offset, dtype="float32")(x)
    return x, layer.output


def as_rgb(images, value_range=(0, 255)):
    """Images as they are drawn: gray, or in the first three of their channels.

    Args:
        images: (..., H, W, C), any numbers.
        value_range: the values of black and of white; None for the least and
            the greatest of the images, unless they are uint8.

    Returns:
        uint8 (..., H, W, 3).
    """
    images = np.asarray(images)
    if images.shape[-1] < 3:  # of two channels the first
        images = np.repeat(images[..., :1], 3, axis=-1)
    images = images[..., :3]
    if value_range is None:
        value_range = 0, 255
        if images.dtype != "uint8":
            low, high = float(images.min()), float(images.max())
            value_range = low, high if high > low else low + 1
    low, high = value_range
    if images.dtype == "uint8" and (low, high) == (0, 255):
        return images
    images = (images.astype("float32") - low) * (255 / (high - low))
    return np.rint(np.clip(images, 0, 255)).astype("uint8")


def takes_pixels(encoder):
    """Whether an encoder takes pixels as they are, and normalizes them itself.

    Those of `build_encoder` do.
    """
    return _rescaling(encoder, _NORMALIZATION) is not None


def of(encoder):
    """The `PixelFormat` that an encoder takes.

    Args:
        encoder: a `keras.Model` from images (N, H, W, C). Without a range of
            its own it is taken to be of uint8 images.
    """
    value_range, layer = None, _rescaling(encoder, _RANGE)
    if layer is not None:
        # To 12 digits, as the numbers of the layer are quotients.
        value_range = tuple(
            float(f"{(value - layer.offset) / layer.scale:.12g}")
            for value in (0, 255)
        )
    return PixelFormat(encoder.input_shape[-1], value_range)


def _rescaling(encoder, name):
    for layer in encoder.layers:
        if layer.name == name and isinstance(layer, layers.Rescaling):
            return layer
    return None
