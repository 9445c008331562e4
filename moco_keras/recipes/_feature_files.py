"""Features of a frozen encoder, computed once and kept."""

import hashlib

import numpy as np

from moco_keras.evaluation import features
from moco_keras.recipes import _run_files

_AT_A_TIME = 8192  # images


def read(folder, backbone, weights_digest, images):
    """Features of images, from the file in which they are kept if it is there.

    Args:
        folder: a `Path`, where the file is or will be.
        backbone: a `keras.Model` from images to features.
        weights_digest: text that names its weights.
        images: uint8 (N, S, S, 3).

    Returns:
        float32 (N, D), rows of length 1; mapped from the file into memory.
    """
    digest = hashlib.sha256(f"{weights_digest} {images.shape}".encode())
    digest.update(np.ascontiguousarray(images))
    path = folder / f"features.{digest.hexdigest()[:16]}.npy"
    if not path.exists():
        with _run_files.readable_write_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            partial = _run_files.partial_path(path)
            with partial.open("wb") as file:
                _write(file, backbone, images)
            partial.replace(path)
    return np.load(path, mmap_mode="r")


def _write(file, backbone, images):
    np.lib.format.write_array_header_1_0(
        file,
        {
            "descr": "<f4",
            "fortran_order": False,
            "shape": (len(images), backbone.output_shape[-1]),
        },
    )
    for start in range(0, len(images), _AT_A_TIME):
        rows = features.extract(backbone, images[start : start + _AT_A_TIME])
        file.write(rows.astype("<f4").tobytes())
