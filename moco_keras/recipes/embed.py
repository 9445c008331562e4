r"""Embeds a folder of images by an exported encoder, and finds the nearest.

    python -m moco_keras.recipes.embed --encoder=saved_models/my_encoder \
        --images=FOLDER --out=features.npz --neighbours=QUERY.jpg

JPEG, PNG, GIF and BMP files of any sizes, in folders of any depth. What cannot
be decoded is skipped, and listed in features.skipped.csv. The file holds
`features`, the embeddings, float32 (N, D), of any length unless the encoder was
exported with --normalize, and `files`, their N paths within the folder. If the
program is interrupted, the same command resumes where it was; until then its
work is in a folder features.[...].partial.

With --neighbours it prints the images that are nearest to another one, and
draws them in a picture for each query, features-QUERY-[...].png. A file that is
there already is not made again.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

import moco_keras
from moco_keras import arguments, export
from moco_keras.data import image_files
from moco_keras.distribution import accelerators
from moco_keras.recipes import (
    _cli,
    _embed_files,
    _embed_nearest,
    _embed_parts,
    _run_files,
    _settings,
)
from moco_keras.recipes._embed_files import HOW_TO_RESUME, readable_out_errors
from moco_keras.system import ownership, signals
from moco_keras.system.paths import printable

_LONGEST_NAME = 200  # bytes; others of 255 are made of it
_STOPPING = (
    "Stopping after these images; a second signal (Ctrl-C) stops at once."
)


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
    on_bad_image: str = _settings.setting(
        "skip",
        "what to do with files that cannot be decoded: skip and list them, or "
        "end with an error at the first",
        choices=("skip", "error"),
    )
    neighbours: str | None = _settings.path(
        None, "an image file, to which the nearest are to be shown"
    )


def embed(settings):
    """Embeds the folder unless that is done, and shows neighbours."""
    for name in ("encoder", "images"):
        if not getattr(settings, name):
            raise ValueError(f"--{name} must be given; --help says what it is.")
    folder, out = Path(settings.images), Path(settings.out)
    if not folder.is_dir():
        raise FileNotFoundError(
            "--images must be a folder that exists. Received: "
            f"{printable(folder)}."
        )
    if (
        out.suffix != ".npz"
        or len(os.fsencode(out.name)) > _LONGEST_NAME
        or not out.parent.is_dir()
        or folder.resolve() in out.resolve().parents
    ):
        raise ValueError(
            "--out must be a file that ends with .npz, with a name of at most "
            f"{_LONGEST_NAME} bytes, in a folder that exists, outside of "
            f"--images. Received: --out={printable(out)}."
        )
    query = settings.neighbours and Path(settings.neighbours)
    picture = query and _embed_nearest.picture_file(query, out)
    done = out.exists() and not _embed_files.unfinished_folders(out)
    with contextlib.nullcontext() if done else _own(out):
        encoder = _Encoder(settings.encoder)
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


@contextlib.contextmanager
def _own(out):
    with contextlib.ExitStack() as stack:
        with readable_out_errors(out):
            stack.enter_context(ownership.hold(out, "The file of --out"))
        yield


class _Encoder:
    """An export, as a function from the bytes of N files to (N, D)."""

    def __init__(self, path):
        try:
            self._layer = moco_keras.load_encoder(path, encoded=True)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                "--encoder must be the folder of an export, of all its "
                "versions or of one, or of a run. Received: "
                f"--encoder={printable(path)}, where no export is. Give "
                "another, or export to it: `python -m "
                "moco_keras.recipes.export --path=FOLDER`."
            ) from error
        folder = Path(self._layer.filepath)
        with export.reading(folder):
            record = (folder / "encoder.json").read_bytes()
            self._dim = json.loads(record)["embedding_size"]
        self.sha256 = _embed_files.sha256(record)

    def __call__(self, contents):
        if not contents:  # on which older exports fail
            return np.zeros((0, self._dim), "float32")
        return self._layer(tf.constant(contents)).numpy()


def _make(encoder, images, settings, about):
    """Embeds all images, or those that are left to embed."""
    out = Path(settings.out)
    skipped_file = out.with_suffix(".skipped.csv")
    if skipped_file.exists() and not _embed_files.lists_skipped(skipped_file):
        raise FileExistsError(
            "Images that are skipped are listed beside --out. Received: "
            f"{printable(skipped_file)}, which is something else. Nothing was "
            "changed; move it elsewhere, or choose another --out."
        )
    # Of this work alone, so that nothing else stands in its way.
    name = _embed_files.sha256(json.dumps(about).encode())[:12]
    place = out.with_suffix(f".{name}.partial")
    print(f"Embedding on: {accelerators.describe()}")
    stops = []  # numbers of signals
    try:
        with (
            readable_out_errors(out),
            # Noted, because TensorFlow replaces what is raised in its calls.
            signals.answered(stops.append, _STOPPING, lambda: HOW_TO_RESUME),
        ):
            place.mkdir(exist_ok=True)
            parts = _embed_parts.embed_in_parts(
                encoder, images, settings, place, stops
            )
            joined = place / "joined.npz"
            skipped = _embed_parts.join(parts, images, settings, about, joined)
            if out.exists():  # since
                _embed_files.refuse_another(out, about)
            _run_files.write_skipped(skipped_file, skipped)
            joined.replace(out)
    except (KeyboardInterrupt, SystemExit):
        print(f"\n{HOW_TO_RESUME}", file=sys.stderr)
        raise
    if skipped:
        print(image_files.summary(skipped))
    with np.load(out) as file:
        count = len(file["files"])
    print(f"The embeddings of {count} images are in {printable(out)}")


if __name__ == "__main__":
    _cli.run(EmbedSettings(), embed)
