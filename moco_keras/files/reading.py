"""The pixels of image files of all kinds, in their own depth."""

import re

import numpy as np
import tensorflow as tf
from PIL import ImageOps

from moco_keras.files import decoding, headers, tiff
from moco_keras.files.header import NotAnImageError, one_line, open_by_pillow

_LUMA = 0.299, 0.587, 0.114  # of red, green and blue, as in JPEG


def read(file, header=None):
    """Reads the image of a file.

    It is turned as EXIF says. Alpha is dropped: the colors below it are read.
    CMYK and palettes become RGB. Of several pictures, the first is read.

    Args:
        file: a binary file.
        header: what `headers.of` returned for it, or None.

    Returns:
        (H, W, C), of a type of `pixel_format.DTYPES`.

    Raises:
        NotAnImageError: if it cannot be read, or has pixels that are no
            numbers; or as `headers.of`.
    """
    header = header or headers.of(file)
    try:
        pixels = _READERS[header.reader](file, header)
    except (NotAnImageError, MemoryError):
        raise
    except tf.errors.OpError as error:
        raise NotAnImageError(_reason(error)) from error
    except Exception as error:  # damaged files have any part of a reader fail
        raise NotAnImageError(
            f"Invalid {header.kind}: {one_line(error)}"
        ) from error
    if pixels.dtype == "float32" and not np.isfinite(pixels).all():
        raise NotAnImageError("Pixels that are no numbers, such as NaN")
    return pixels


def _reason(error):
    """What an error of TensorFlow says, without the name of the operation."""
    line = re.sub(r"\{\{.*?\}\} | ?\[.*", "", one_line(error.message))
    return line.rstrip(".")


def convert(pixels, channels, dtype):
    """Brings pixels to other channels, and those of 16 bits to the upper 8.

    Args:
        pixels: (H, W, C).
        channels: C; 3 of 1 or of 4, the first ones; or 1 of 3.
        dtype: theirs; "uint8" of uint16; or "float32", which holds all.

    Returns:
        (H, W, channels), of this type.

    Raises:
        NotAnImageError: if they cannot be brought to that.
    """
    if dtype == "uint8" and pixels.dtype == "uint16":
        pixels = (pixels >> 8).astype("uint8")
    if dtype == "float32":
        pixels = pixels.astype(dtype)
    if pixels.dtype != dtype:
        raise NotAnImageError(f"Pixels of type {pixels.dtype}, not {dtype}")
    found = pixels.shape[-1]
    if found == channels:
        return pixels
    if found == 1 and channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    if found == 3 and channels == 1:
        gray = pixels @ np.array(_LUMA)
        if dtype != "float32":
            gray = np.round(gray)
        return gray[..., None].astype(dtype)
    if found == 4 and channels == 3:
        return pixels[..., :3]
    raise NotAnImageError(f"Images of {found} channels, not {channels}")


def _by_tensorflow(file, header):
    file.seek(0)
    image = decoding.decode_upright(
        file.read(), header.channels, header.dtype
    ).numpy()
    return _oriented(image, header.orientation)


def _by_pillow(file, header):
    image = open_by_pillow(file, header.kind)
    image = ImageOps.exif_transpose(image)
    if header.dtype == "uint8" and header.channels < 4:
        image.info.pop("transparency", None)  # of which Pillow would warn
        image = image.convert("L" if header.channels == 1 else "RGB")
    pixels = np.array(image).astype(header.dtype)
    return pixels.reshape(*pixels.shape[:2], header.channels)


def _by_tifffile(file, header):
    with tiff.first_page(file) as page:
        pixels = page.asarray()
        if page.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, -1)
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        pixels = pixels[..., tiff.channels_of(page)].astype(header.dtype)
        if page.photometric == 0 and header.dtype in ("uint8", "uint16"):
            pixels = 2**page.bitspersample - 1 - pixels  # 0 is white
    return _oriented(pixels, header.orientation)


def _by_numpy(file, header):
    shape, fortran, dtype = headers.npy_header(file)
    contents = file.read()
    expected = int(np.prod(shape)) * dtype.itemsize
    if len(contents) != expected:
        raise NotAnImageError(
            f".npy of {len(contents):,} bytes of pixels, not {expected:,}"
        )
    pixels = np.frombuffer(contents, dtype)
    pixels = pixels.reshape(shape, order="F" if fortran else "C")
    shape = header.height, header.width, header.channels
    return pixels.reshape(shape).astype(header.dtype)


_READERS = {
    "tensorflow": _by_tensorflow,
    "pillow": _by_pillow,
    "tifffile": _by_tifffile,
    "numpy": _by_numpy,
}


def _oriented(image, orientation):
    if orientation in decoding.TRANSPOSED:
        image = image.swapaxes(0, 1)
    if orientation in decoding.UPSIDE_DOWN:
        image = image[::-1]
    if orientation in decoding.LEFT_TO_RIGHT:
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
