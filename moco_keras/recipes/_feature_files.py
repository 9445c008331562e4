"""Features of a frozen encoder, computed once and kept."""

import hashlib

import keras
import numpy as np

from moco_keras.evaluation import features
from moco_keras.recipes import _labeled_data, _run_files
from moco_keras.version import __version__


def digest(stream, image_size):
    """Text that differs if images or labels do, or the size that they get.

    Args:
        stream: `data.ImageStream` whose labels are known.
        image_size: the height and the width.
    """
    height, width = image_size
    size = height if height == width else image_size
    named = f"{stream.source} {stream.num_examples} {size} "
    found = hashlib.sha256(named.encode() + stream.labels.tobytes())
    return found.hexdigest()[:16]


def read(folder, backbone, name, stream):
    """Features of images, from the file in which they are kept if it is there.

    Neither the images nor the features need to fit into memory.

    Args:
        folder: a `Path`, where the file is or will be.
        backbone: a `keras.Model` from images to features.
        name: text that names its weights and the split.
        stream: `data.ImageStream` whose labels are known.

    Returns:
        float32 (N, D), rows of length 1; mapped from the file into memory.
    """
    size, count = backbone.input_shape[1:3], stream.num_examples
    of = f"{__version__} {name} {digest(stream, size)}"
    of = hashlib.sha256(of.encode()).hexdigest()[:16]
    path = folder / f"features.{of}.npy"
    if not path.exists():
        with _run_files.readable_write_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            partial = _run_files.partial_path(path)
            with partial.open("wb") as file:
                batches = _labeled_data.evaluation_batches(stream, size)
                _write(file, backbone, batches, count)
            partial.replace(path)
    return np.load(path, mmap_mode="r")


def _write(file, backbone, batches, count):
    np.lib.format.write_array_header_1_0(
        file,
        {
            "descr": "<f4",
            "fortran_order": False,
            "shape": (count, backbone.output_shape[-1]),
        },
    )
    bar = keras.utils.Progbar(count, unit_name="image")
    for images, _ in batches:
        rows = features.unit_rows(backbone.predict_on_batch(images))
        file.write(rows.astype("<f4").tobytes())
        bar.add(len(rows))
