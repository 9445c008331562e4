r"""Embeds a folder of images by an exported encoder, and finds the nearest.

    python -m moco_keras.recipes.embed --encoder=saved_models/my_encoder \
        --images=FOLDER --out=features.npz --neighbours=QUERY.jpg

Files of all kinds that docs/images.md lists, of any sizes, in folders of any
depth. What cannot be read is skipped, and listed in features.skipped.csv. The
file holds `features`, the embeddings, float32 (N, D), and `files`, their N
paths within the folder. The embeddings have length 1 if the encoder was
exported with --normalize. If the program is interrupted, the same command
resumes where it was; until then its work is in a folder
features.npz.[...].partial.

With --neighbours it prints the images that are nearest to another one, and
draws them in a picture for each query, features-QUERY-[...].png. A file that is
there already is not made again.
"""

import contextlib
import dataclasses
import shutil
from pathlib import Path

import numpy as np

from moco_keras import arguments
from moco_keras.recipes import (
    _cli,
    _embed_encoder,
    _embed_files,
    _embed_nearest,
    _embed_parts,
    _embed_run,
    _settings,
)
from moco_keras.system.paths import printable


@dataclasses.dataclass(frozen=True)
class EmbedSettings(_settings.Bounded):
    """What the program is told."""

    encoder: str | None = _settings.path(
        None,
        "the trained encoder: folder of an export, of all its versions or of "
        "one, or of a run",
    )
    images: str | None = _settings.path(None, "the folder of images")
    out: str = _settings.path("features.npz", "the file to write")
    batch_size: int = _settings.setting(
        32, "images embedded at a time", arguments.COUNT
    )
    on_bad_image: str = _settings.on_bad_image()
    neighbours: str | None = _settings.path(
        None, "an image file, to which the nearest are to be shown"
    )


def embed(settings):
    """Embeds the folder unless that is done, and shows neighbours."""
    for name in ("encoder", "images"):
        if not getattr(settings, name):
            raise ValueError(f"--{name} must be given; --help says what it is.")
    _embed_run.check_paths(settings, ".npz")
    folder, out = Path(settings.images), Path(settings.out)
    query = settings.neighbours and Path(settings.neighbours)
    picture = query and _embed_nearest.picture_file(query, out)
    done = out.exists() and not _embed_files.unfinished_folders(out)
    with contextlib.nullcontext() if done else _embed_run.own(out):
        encoder = _embed_encoder.of_encoder(settings.encoder)
        if query and (reason := encoder.why_not(query)):
            raise _embed_nearest.bad_query(query, reason)
        images = _embed_parts.find(folder)
        about = {
            "encoder": encoder.sha256,
            "images": _embed_files.sha256(b"\0".join(images.fingerprints)),
            "on_bad_image": settings.on_bad_image,
        }
        if out.exists():
            _embed_files.refuse_another(out, about)
            print(
                f"{printable(out)} holds the embeddings of {printable(folder)}"
            )
        else:
            _make(encoder, images, settings, about)
        # Those of other images or of another encoder will never be resumed.
        for place in _embed_files.unfinished_folders(out):
            shutil.rmtree(place, ignore_errors=True)
    if query:
        _embed_nearest.show(encoder, query, settings, picture)


def _make(encoder, images, settings, about):
    out = Path(settings.out)

    def finish(joined):
        if out.exists():  # since
            _embed_files.refuse_another(out, about)
        joined.replace(out)

    _embed_run.embed(encoder, images, settings, about, finish)
    with np.load(out) as file:
        count = len(file["files"])
    print(f"The embeddings of {count} images are in {printable(out)}")


if __name__ == "__main__":
    _cli.run(EmbedSettings(), embed)
