"""What is known of an image file whose pixels are not read."""

import os
from typing import NamedTuple

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from moco_keras.pixel_format import DTYPES

KINDS = "JPEG, PNG, GIF, BMP, WebP, TIFF or .npy"
NO_KIND = "Neither JPEG, PNG, GIF, BMP, WebP, TIFF nor .npy"

_PLUGINS = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
# Modes of Pillow.
_GRAY = "1", "L", "LA", "La"
_WITH_ALPHA = "LA", "La", "PA", "RGBA", "RGBa"


class NotAnImageError(ValueError):
    """Why a file is not taken as an image."""


class Header(NamedTuple):
    """What a file says of its image.

    Attributes:
        kind: of the file, one of `KINDS`.
        height, width: in pixels, as they are stored.
        channels: those that are read: alpha is dropped, and CMYK and palettes
            become RGB.
        dtype: of the pixels, one of `pixel_format.DTYPES`.
        orientation: 1 to 8, as EXIF has it.
        reader: "tensorflow", "pillow", "tifffile" or "numpy".
        alpha: whether it has a transparency, which is dropped.
        whole: whether the file seems to hold all of the pixels. Where this is
            False, only reading them shows it.
        pages: whether others follow the first page of a TIFF, which is read.
    """

    kind: str
    height: int
    width: int
    channels: int
    dtype: str = "uint8"
    orientation: int = 1
    reader: str = "pillow"
    alpha: bool = False
    whole: bool = True
    pages: bool = False


def one_line(error):
    """What an error says, on one line."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def size_of(file):
    """The number of bytes of a file, whose place is left as it is."""
    place = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(place)
    return size


def open_by_pillow(file, kind):
    """The Pillow image of a file, whose pixels are not read yet."""
    file.seek(0)
    return _PLUGINS[kind](file)


def of_pillow(file, kind):
    """The `Header` of an image that is read as 8 bits in gray or as RGB."""
    image = open_by_pillow(file, kind)
    channels = 1 if image.mode in _GRAY else 3
    alpha = image.mode in _WITH_ALPHA or "transparency" in image.info
    return Header(kind, image.height, image.width, channels, alpha=alpha)


def checked_dtype(dtype):
    """The name of a type of pixels, if images can have it."""
    name = np.dtype(dtype).newbyteorder("=").name
    if name not in DTYPES:
        raise NotAnImageError(f"Pixels of type {name}, not {', '.join(DTYPES)}")
    return name
