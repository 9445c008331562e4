"""Embedding a folder of images, which resumes where it was."""

import contextlib
import json
import os
from pathlib import Path

from moco_keras.distribution import accelerators
from moco_keras.files import scanning
from moco_keras.recipes import _embed_files, _embed_parts, _run_files
from moco_keras.recipes._embed_files import readable_out_errors
from moco_keras.system import ownership, signals
from moco_keras.system.paths import printable

_LONGEST_NAME = 200  # bytes; others of 255 are made of it
_STOPPING = (
    "Stopping after these images; a second signal (Ctrl-C) stops at once."
)


def check_paths(settings, suffix):
    """Refuses a folder that is not there, and a file that cannot be written.

    Args:
        settings: with `images`, a folder, and `out`, a file.
        suffix: of the file.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if the file cannot be written there.
    """
    folder, out = Path(settings.images), Path(settings.out)
    if not folder.is_dir():
        raise FileNotFoundError(
            "--images must be a folder that exists. Received: "
            f"{printable(folder)}."
        )
    if (
        out.suffix != suffix
        or len(os.fsencode(out.name)) > _LONGEST_NAME
        or not out.parent.is_dir()
        or folder.resolve() in out.resolve().parents
    ):
        raise ValueError(
            f"--out must be a file that ends with {suffix}, with a name of at "
            f"most {_LONGEST_NAME} bytes, in a folder that exists, outside of "
            f"--images. Received: --out={printable(out)}."
        )


@contextlib.contextmanager
def own(out):
    """Keeps other processes from writing the same file meanwhile."""
    with contextlib.ExitStack() as stack:
        with readable_out_errors(out):
            stack.enter_context(ownership.hold(out, "The file of --out"))
        yield


def embed(function, images, settings, about, finish):
    """Embeds all images, or those that are left to embed.

    Args:
        function: `_embed_encoder.OfFiles`.
        images: `_embed_parts.Images`.
        settings: with `images`, `out`, `batch_size` and `on_bad_image`.
        about: by flag, what the result is made from.
        finish: function that gets the .npz file of all, a `Path`, and makes
            the results of it.
    """
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
    place = out.with_name(f"{out.name}.{name}.partial")
    print(f"Embedding on: {accelerators.describe()}")
    stops = []  # numbers of signals
    with (
        _run_files.resumable(),
        readable_out_errors(out),
        # Noted, because TensorFlow replaces what is raised in its calls.
        signals.answered(
            stops.append, _STOPPING, lambda: _run_files.HOW_TO_RESUME
        ),
    ):
        place.mkdir(exist_ok=True)
        parts = _embed_parts.embed_in_parts(
            function, images, settings, place, stops
        )
        joined = place / "joined.npz"
        skipped = _embed_parts.join(parts, images, settings, about, joined)
        _run_files.write_skipped(skipped_file, skipped)
        finish(joined)
    if skipped:
        print(scanning.summary(skipped))
