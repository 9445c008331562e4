"""Compares how images are read with how Pillow reads them.

    PYTHONPATH=. python tests/helpers/pillow_images.py \
        --images=pillow-13.0.0/Tests/images

The images are those of Pillow's source distribution. It prints which ones are
read differently, and how many of each kind are not.
"""

import collections
import warnings
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image, ImageOps

from moco_keras.files import headers, reading
from moco_keras.files.header import NotAnImageError

_IMAGES = flags.DEFINE_string("images", None, "the folder", required=True)
_MOST = 3  # levels, on average


def _by_pillow(path):
    """The image, or None."""
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception:  # many of them are damaged on purpose
        return None


def _verdict(path):
    """The kind of a file, and what differs; or None for another kind."""
    with path.open("rb") as file:
        try:
            kind = headers.kind_of(file)
        except NotAnImageError:
            return None
        expected = _by_pillow(path)
        try:
            found = reading.read(file)
        except NotAnImageError as error:
            both = expected is None
            return kind, "neither reads" if both else f"skipped: {error}"
    if expected is None:
        return kind, "Pillow does not read"
    if found.dtype != "uint8" or found.shape[-1] not in (1, 3):
        return kind, f"{found.dtype}, {found.shape[-1]} channels"
    found = reading.convert(found, 3, "uint8").astype(int)
    if found.shape != expected.shape:
        return kind, f"shape {found.shape}, not {expected.shape}"
    if np.abs(found - expected).mean() >= _MOST:
        return kind, "other pixels"
    return kind, "alike"


def main(_):
    """Compares them all, and prints."""
    warnings.simplefilter("ignore")
    counts = collections.Counter()
    for path in sorted(Path(_IMAGES.value).rglob("*")):
        if path.is_file() and (verdict := _verdict(path)):
            counts[verdict] += 1
            if verdict[1] not in ("alike", "neither reads"):
                print(f"{path.name}: {verdict[1]}")
    for (kind, what), count in sorted(counts.items()):
        print(f"{count:4} {kind}: {what}")


if __name__ == "__main__":
    app.run(main)
