"""Measures scans of many small files, and the memory that they take.

    PYTHONPATH=. python tests/helpers/many_files.py --folder=NEW --count=1000000

It writes the files first. The first scan looks at all of them.
"""

import io
import time
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

from moco_keras import augmentations, data, distribution

_FOLDER = flags.DEFINE_string("folder", None, "a new one", required=True)
_COUNT = flags.DEFINE_integer("count", 1_000_000, "of files")
_FOLDERS = 100


def _memory():
    """MB that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def _write(folder):
    rng = np.random.default_rng(0)
    images = []
    for i in range(64):
        file = io.BytesIO()
        pixels = rng.integers(0, 256, (24 + i % 5, 32, 3), "uint8")
        Image.fromarray(pixels).save(file, "JPEG", quality=60)
        images.append(file.getvalue())
    for i in range(_FOLDERS):
        place = folder / f"n{i:08}"
        place.mkdir(parents=True)
        for j in range(_COUNT.value // _FOLDERS):
            # No two files are equal.
            contents = images[(7 * j + i) % 64] + b"%d" % j
            (place / f"n{i:08}_{j:06}.JPEG").write_bytes(contents)


def main(_):
    """Writes, scans twice, and reads a batch."""
    folder = Path(_FOLDER.value)
    _write(folder)
    time.sleep(3)  # what changed just now is not kept
    for scan in ("first", "next"):
        before, start = _memory(), time.monotonic()
        stream = data.read(folder)
        took = time.monotonic() - start
        more = _memory() - before
        print(f"The {scan} scan: {took:.0f} s, {more:.0f} MB")
    views = data.two_views(stream, augmentations.cifar(32), 256)
    batches = views.training_batches(distribution.strategy("none"))
    before, start = _memory(), time.monotonic()
    next(iter(batches.read(0, True, 0, 0, 0)))
    took, more = time.monotonic() - start, _memory() - before
    print(f"To the first batch: {took:.0f} s, {more:.0f} MB")


if __name__ == "__main__":
    app.run(main)
