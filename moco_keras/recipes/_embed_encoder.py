"""Exports as functions of image files of all kinds."""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf

import moco_keras
from moco_keras import export, pixel_format
from moco_keras.files import headers, reading, scanning
from moco_keras.files.header import NotAnImageError
from moco_keras.recipes import _embed_files
from moco_keras.system.paths import printable


class OfFiles:
    """A function from N image files to (N, D).

    An export that takes files gets those that TensorFlow decodes as they are,
    and others as PNG. Any other export gets the centers of images, which
    `augmentations.evaluation` cuts out.

    Args:
        record: bytes, the JSON file with what the export says of itself.
        open_signature: function from "serve_encoded" or "serving_default" to a
            function from a tensor of N files or images to one (N, D).
        dim: D.

    Attributes:
        channels: of its images.
        sha256: of the record, a text.
    """

    def __init__(self, record, open_signature, dim):
        about = json.loads(record)
        signatures = about["signatures"]
        # Older exports are of uint8.
        self._pixels = pixel_format.PixelFormat(
            value_range=about.get("value_range")
        )
        spec = signatures["serving_default"]["inputs"]["images"]
        _, *size, self.channels = spec["shape"]
        self._dtype = spec["dtype"]
        self._takes_files = "serve_encoded" in signatures
        signature = "serve_encoded" if self._takes_files else "serving_default"
        self._call = open_signature(signature)
        self._dim = dim
        self._center = None
        if not self._takes_files:
            self._center = _center(tuple(size), self._dtype, self.channels)
        self.sha256 = _embed_files.sha256(record)

    def prepare(self, path):
        """What a call takes of a file: bytes, or an image.

        Raises:
            OSError, NotAnImageError: if it cannot be read, or has other
                channels, or pixels of another type or out of range.
        """
        with scanning.opened(path) as file:
            header = headers.of(file)
            upright = header.reader == "tensorflow" and header.orientation == 1
            if self._takes_files and upright and header.dtype == "uint8":
                file.seek(0)
                return file.read()
            pixels = self._read(file, header)
        if self._takes_files:
            return tf.io.encode_png(pixels, compression=1).numpy()
        return self._center(pixels).numpy()

    def _read(self, file, header=None):
        """The pixels of a file, as they are taken."""
        header = header or headers.of(file)
        if header.dtype == "uint16" and self._dtype == "uint8":
            raise NotAnImageError("Pixels of 16 bits, not of 8")
        if header.dtype == "uint8" and self._pixels.bounds[1] > 255:
            raise NotAnImageError(f"Pixels of 8 bits, not in {self._pixels}")
        pixels = reading.read(file, header)
        pixels = reading.convert(pixels, self.channels, self._dtype)
        low, high = pixels.min(), pixels.max()
        if not self._pixels.holds(low, high, self._dtype):
            raise NotAnImageError(
                f"Pixels from {low:g} to {high:g}, not in {self._pixels}"
            )
        return pixels

    def why_not(self, path):
        """Why a file cannot be taken, or None."""
        return scanning.why_not(path, self._read)

    def __call__(self, prepared):
        """The results (N, D) of a list of what `prepare` returned."""
        if not prepared:  # on which older exports fail
            return np.zeros((0, self._dim), "float32")
        if not self._takes_files:
            prepared = np.stack(prepared)
        return self._call(tf.constant(prepared)).numpy()


def _center(size, dtype, channels):
    """A function from an image of any size to its center, in its type."""
    from moco_keras import augmentations  # slow to import

    evaluation = augmentations.evaluation(size)

    @tf.function(input_signature=[tf.TensorSpec((None, None, channels), dtype)])
    def center(image):
        image = evaluation(image)
        if image.dtype != dtype and tf.as_dtype(dtype).is_integer:
            image = tf.round(image)
        return tf.cast(image, dtype)

    return center


def of_encoder(path):
    """The function of an exported encoder, or of the one of a run.

    Raises:
        FileNotFoundError: if no export is there.
    """
    try:
        layer = moco_keras.load_encoder(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            "--encoder must be the folder of an export, of all its versions or "
            f"of one, or of a run. Received: --encoder={printable(path)}, "
            "where no export is. Give another, or export to it: `python -m "
            "moco_keras.recipes.export --path=FOLDER`."
        ) from error
    folder = Path(layer.filepath)
    with export.reading(folder):
        record = (folder / "encoder.json").read_bytes()
        dim = json.loads(record)["embedding_size"]

    def open_signature(name):
        if name == "serving_default":
            return layer
        return moco_keras.load_encoder(folder, encoded=True)

    return OfFiles(record, open_signature, dim)
