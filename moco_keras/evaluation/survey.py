"""What the images of a data set are like, before anything is trained on them.

`look` describes an image by the file that holds it, and `copies` and
`near_copies` find images that stand in a data set more than once.
"""

import hashlib
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image

from moco_keras import pixel_format
from moco_keras.evaluation import health
from moco_keras.files import headers, reading
from moco_keras.files.header import Header

_LEVELS = 8  # of 255, between which the noise of a JPEG file stays
_THUMBNAIL = 16  # pixels on a side
_REDUCED = 64  # pixels on a side, of which hashes and thumbnails are made
# Of near copies. A JPEG of quality 60, a copy of half the size, and one that is
# a tenth brighter differ in 4 of 64 bits at most, nearly always; so do other
# images, which a thumbnail tells apart.
_BITS = 4
_CORRELATION = 0.98
_BLOCK = 1024  # rows that are compared with all others at a time


class Look(NamedTuple):
    """What a look at an image found.

    Attributes:
        header: a `header.Header`; its height and width are those that are seen.
        low, high: the least and the greatest pixel.
        gray: whether it has one channel, or three that are alike, up to 8 of
            255 parts of its range.
        blank: whether it has one color, see `health.is_blank`.
        digest: SHA-256 of the file.
        hash: bool (64,), its perceptual hash.
        thumbnail: uint8 (16, 16, 3).
    """

    header: Header
    low: float
    high: float
    gray: bool
    blank: bool
    digest: bytes
    hash: np.ndarray
    thumbnail: np.ndarray


def look(file):
    """Describes an image.

    Args:
        file: a binary file.

    Returns:
        A `Look`.

    Raises:
        NotAnImageError: if it is not an image, see `reading.read`.
    """
    header = headers.of(file)
    pixels = reading.read(file, header)
    height, width, _ = pixels.shape
    low, high = float(pixels.min()), float(pixels.max())
    value_range = (0, 255) if header.dtype == "uint8" else (low, high)
    picture = Image.fromarray(pixel_format.as_rgb(pixels, None))
    picture = picture.reduce(max(1, min(height, width) // _REDUCED))
    small = np.asarray(picture)
    file.seek(0)
    return Look(
        header._replace(height=height, width=width),
        low,
        high,
        gray=header.channels == 1
        or (
            header.channels == 3
            and int(np.ptp(small, axis=-1).max()) <= _LEVELS
        ),
        blank=health.is_blank(pixels, value_range),
        digest=hashlib.sha256(file.read()).digest(),
        hash=imagehash.phash(picture).hash.ravel(),
        thumbnail=np.asarray(
            picture.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
        ),
    )


def copies(looks):
    """The first image whose file equals that of each image, byte for byte.

    Args:
        looks: a list of `Look`s.

    Returns:
        int (N,): a number below its own for a copy, -1 for any other.
    """
    first = {}
    found = [first.setdefault(x.digest, i) for i, x in enumerate(looks)]
    return np.where(np.array(found) < np.arange(len(looks)), found, -1)


def near_copies(looks):
    """The first image that each image nearly equals.

    Two images nearly equal each other if their perceptual hashes differ in 4
    bits at most, and if their thumbnails, of mean 0 and length 1, have a
    product of 0.98 or more: for example, an image that was resized or
    compressed again. Each image is compared with earlier ones that are no near
    copies themselves. An image of one color, and a copy byte for byte, is no
    near copy.

    Args:
        looks: a list of `Look`s. The time grows with its square: seconds for
            50,000.

    Returns:
        int (N,): a number below its own for a near copy, -1 for any other.
    """
    found = np.full(len(looks), -1)
    signs = np.array([x.hash for x in looks], "float32") * 2 - 1
    thumbnails = np.array([x.thumbnail.ravel() for x in looks])
    blank = np.array([x.blank for x in looks], bool)
    rows = np.flatnonzero(~blank & (copies(looks) < 0))
    firsts = rows[:0]  # those that are no near copies
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        for i, j in _alike(signs, thumbnails, block, firsts):
            if found[i] < 0:
                found[i] = j
        block = block[found[block] < 0]
        for i, j in _alike(signs, thumbnails, block, block):
            if j < i and found[i] < 0 and found[j] < 0:
                found[i] = j
        firsts = np.concatenate([firsts, block[found[block] < 0]])
    return found


def _alike(signs, thumbnails, rows, others):
    """Images that nearly equal each other.

    Args:
        signs: hashes of 1 and -1, float32 (N, 64).
        thumbnails: uint8 (N, 768).
        rows, others: int (A,) and (B,), rising numbers of images.

    Returns:
        A list of pairs from both, sorted.
    """
    pairs = []
    for start in range(0, len(others), _BLOCK):
        part = others[start : start + _BLOCK]
        # The product of two hashes is 64 less twice the bits that differ.
        close = signs[rows] @ signs[part].T >= signs.shape[1] - 2 * _BITS
        i, j = close.any(axis=1), close.any(axis=0)
        if not i.any():
            continue
        similar = _unit(thumbnails[rows[i]]) @ _unit(thumbnails[part[j]]).T
        close = close[np.ix_(i, j)] & (similar >= _CORRELATION)
        of_rows, of_part = np.nonzero(close)
        pairs += zip(rows[i][of_rows], part[j][of_part], strict=True)
    return sorted(pairs)


def _unit(thumbnails):
    """Thumbnails of mean 0 and length 1, float32."""
    x = thumbnails - thumbnails.mean(axis=1, keepdims=True, dtype="float32")
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.maximum(length, 1e-6)
