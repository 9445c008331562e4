"""TIFF files: by Pillow where it knows them, else by tifffile."""

import contextlib

import numpy as np
from PIL import TiffImagePlugin

from moco_keras.files.decoding import ORIENTATION
from moco_keras.files.header import (
    Header,
    NotAnImageError,
    checked_dtype,
    of_pillow,
    open_by_pillow,
    size_of,
)

# Extra samples that are alpha, and interpretations of colors.
_ALPHA = 1, 2
_AS_THEY_ARE = 0, 1, 2  # gray from white or from black, and RGB
_CMYK = 5


def of(file):
    """The `Header` of a TIFF file."""
    tags = _tags(file)
    return _of_tags(file, tags)._replace(pages=tags.next > 0)


def _of_tags(file, tags):
    if tags.get(254, 0) & 1:  # NewSubfileType
        raise NotAnImageError(
            "TIFF that begins with a reduced image, as raw files of cameras do"
        )
    bits, number = max(tags.get(258, (1,))), tags.get(339, (1,))[0]
    color = tags.get(262)
    # Without alpha.
    samples = tags.get(277, 1)
    samples -= sum(kind in _ALPHA for kind in tags.get(338, ()))
    # Pillow drops what it does not know: bands of many, and lower bits of some.
    if color in _AS_THEY_ARE and (
        samples > 4 or (bits > 8 and (samples > 1 or (color, number) == (0, 1)))
    ):
        return _of_tifffile(file)
    try:
        mode = open_by_pillow(file, "TIFF").mode
    except Exception:  # it knows but some combinations
        return _of_tifffile(file)
    places, counts = (
        tags.get(strips) or tags.get(tiles) or (0,)
        for strips, tiles in ((273, 324), (279, 325))
    )
    header = of_pillow(file, "TIFF")._replace(
        whole=_reach(places, counts) <= size_of(file)
    )
    if mode == "RGBX":
        header = header._replace(channels=4)
    if bits > 8 and color != _CMYK:
        dtype = {
            ("I;16", 1): "uint16",
            ("I;16B", 1): "uint16",
            ("I", 2): "int16",
            ("F", 3): "float32",
        }.get((mode, number))
        if dtype is None or np.dtype(dtype).itemsize * 8 < bits:
            return _of_tifffile(file)
        return header._replace(channels=1, dtype=dtype)
    if color in _AS_THEY_ARE and samples != header.channels:
        return _of_tifffile(file)
    return header


def _tags(file):
    """The tags of the first page."""
    file.seek(0)
    start = file.read(8)
    if start[2:3] == b"+" or start[3:4] == b"+":
        start += file.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(start)
    file.seek(tags.next)
    tags.load(file)
    return tags


def _of_tifffile(file):
    with first_page(file) as page:
        channels = len(channels_of(page))
        dtype = checked_dtype(page.dtype)
        if page.axes not in ("YX", "YXS", "SYX"):
            raise NotAnImageError(f"TIFF of dimensions {page.axes}")
        tag = page.tags.get(ORIENTATION)
        return Header(
            "TIFF",
            page.imagelength,
            page.imagewidth,
            channels,
            dtype,
            int(tag.value) if tag else 1,
            "tifffile",
            channels < page.samplesperpixel,
            _reach(page.dataoffsets, page.databytecounts) <= size_of(file),
        )


def channels_of(page):
    """Numbers of the samples of a page of tifffile that are not alpha."""
    samples = page.samplesperpixel
    first = samples - len(page.extrasamples)
    return [
        i
        for i in range(samples)
        if i < first or int(page.extrasamples[i - first]) not in _ALPHA
    ]


def _reach(places, counts):
    """Where the last of some bytes end."""
    return max(map(sum, zip(places, counts, strict=False)), default=0)


@contextlib.contextmanager
def first_page(file):
    """The first page of a TIFF, as tifffile has it."""
    try:
        import tifffile
    except ImportError:
        raise NotAnImageError(
            "TIFF of several channels or of other than 8 bits, which needs "
            'tifffile: pip install "moco_keras[tiff]"'
        ) from None
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        yield tiff.pages[0]
