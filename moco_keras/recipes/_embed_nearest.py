"""The images that are nearest to another: printed, and drawn."""

import os
from pathlib import Path

import numpy as np

from moco_keras import plotting
from moco_keras.evaluation import knn
from moco_keras.files import scanning
from moco_keras.recipes._embed_files import readable_out_errors, sha256
from moco_keras.system import ownership
from moco_keras.system.paths import printable

_NEIGHBOURS = 9


def bad_query(query, reason):
    """The error that --neighbours is no image that the encoder takes."""
    return ValueError(
        "--neighbours must be an image, of the channels and the type that the "
        f"encoder takes. Received: {printable(query)}: {reason}."
    )


def picture_file(query, out):
    """Where the picture of a query is drawn; each query has its own."""
    if reason := scanning.why_not(query):
        raise bad_query(query, reason)
    real = Path(os.path.realpath(query))
    stem = real.stem
    while len(os.fsencode(stem)) > 32:  # of the 255 bytes that a name may have
        stem = stem[:-1]
    path = sha256(os.fsencode(real))[:8]
    picture = out.with_name(f"{out.stem}-{stem}-{path}.png")
    if picture.exists() and not _drew(picture):
        raise FileExistsError(
            "The picture that --neighbours draws must be new, or have been "
            f"drawn by it. Received: {printable(picture)}, which is something "
            "else. Nothing was changed; move it elsewhere."
        )
    return picture


def _drew(path):
    with path.open("rb") as file:
        return scanning.is_drawn(file.read(1024))


def show(encoder, query, settings, picture):
    """Prints and draws the images that are nearest to another."""
    folder, out = Path(settings.images), Path(settings.out)
    with np.load(out) as found:
        bank, files = found["features"], found["files"]
    queries = encoder([encoder.prepare(query)])
    k = min(_NEIGHBOURS + 1, len(bank))
    (similarities,), (rows,) = knn.nearest(bank, queries, k)
    nearest = [
        (name, similarity)
        for name, similarity in zip(files[rows], similarities, strict=True)
        if not (folder / name).samefile(query)
    ][:_NEIGHBOURS]
    if not nearest:
        print(
            f"{printable(folder)} holds no other image than {printable(query)}"
        )
        return
    print(f"Nearest to {printable(query)}, and their cosines:")
    for name, similarity in nearest:
        print(f"  {similarity:.3f}  {printable(name)}")
    pictures = [(*found, pixels(folder / found[0])) for found in nearest]
    with readable_out_errors(out), ownership.scratch(out.parent) as place:
        partial = place / picture.name
        plotting.nearest(pixels(query), pictures, partial, encoder.channels)
        partial.replace(picture)
    print(f"They are drawn in {printable(picture)}")


def pixels(path):
    """The pixels of an image file as RGB, of a large one only some."""
    image = scanning.read(path)
    step = max(1, max(image.shape[:2]) // 256)
    return plotting.as_rgb(image[::step, ::step], None)
