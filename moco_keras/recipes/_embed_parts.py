"""Embedding images in parts, each of which is kept once it is done."""

import concurrent.futures
import os
import signal
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from moco_keras.files import scanning, walking
from moco_keras.files.header import NotAnImageError
from moco_keras.recipes import _embed_files
from moco_keras.recipes._embed_files import open_npz
from moco_keras.recipes._run_files import HOW_TO_RESUME
from moco_keras.system.paths import printable

_FILES_OF_A_PART = 1024
_ARRAYS_OF_A_PART = ("features", "files", "skipped", "reasons")


class Images(NamedTuple):
    """What a folder of images holds; see `walking.walk`."""

    files: list[Path]
    fingerprints: list[bytes]
    unread: list[tuple[Path, str]]
    left_out: list[tuple[Path, str]]


def find(folder):
    """The `Images` of a folder."""
    files, unread, left_out = walking.walk(folder)
    files = [Path(file) for file in files]
    fingerprints = [_fingerprint(file, folder) for file in files]
    return Images(files, fingerprints, unread, left_out)


def _fingerprint(path, folder):
    """Bytes that differ if a file was changed or renamed."""
    name = os.fsencode(path.relative_to(folder))
    try:
        status = path.stat()
        state = f" {status.st_size} {status.st_mtime_ns}"
    except OSError:
        state = ""
    return name + state.encode()


def embed_in_parts(encoder, images, settings, place, stops):
    """Writes embeddings, a file for every 1,024 images.

    Args:
        encoder: `_embed_encoder.OfFiles`.
        images: `Images`.
        settings: `EmbedSettings`.
        place: the folder of the parts; those that it holds are kept.
        stops: list that gets the number of a signal that is to stop this.

    Returns:
        The paths of all parts, in order.
    """
    files, folder = images.files, Path(settings.images)
    if settings.on_bad_image == "error" and images.unread:
        raise scanning.bad_image(*images.unread[0])
    bar = keras.utils.Progbar(len(files), unit_name="file")
    parts = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), _FILES_OF_A_PART):
            end = min(start + _FILES_OF_A_PART, len(files))
            parts.append(place / f"{len(parts):06}.npz")
            if not _is_done(parts[-1]):
                batches = []
                for first in range(start, end, settings.batch_size):
                    last = min(first + settings.batch_size, end)
                    batch = embed_batch(encoder, files[first:last], pool)
                    if settings.on_bad_image == "error" and batch.skipped:
                        raise scanning.bad_image(*batch.skipped[0])
                    batches.append(batch)
                    bar.update(last, finalize=False)
                    if stops:
                        _stop(stops[0])
                # Otherwise a disk that vanished would count as bad images.
                for i in range(start, end):
                    if _fingerprint(files[i], folder) != images.fingerprints[i]:
                        raise ValueError(
                            "--images must stay as they are while they are "
                            f"embedded. Received: {printable(files[i])}, which "
                            f"has changed or is gone.\n{HOW_TO_RESUME}"
                        )
                _write_part(batches, settings.images, parts[-1])
            bar.update(end)
    return parts


def _stop(number):
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _is_done(part):
    """Whether a part exists and is whole; warns if it is damaged."""
    if not part.exists():
        return False
    try:
        with open_npz(part, _ARRAYS_OF_A_PART):
            return True
    except ValueError as error:
        print(
            f"\n{printable(part)} is damaged: {error}. Its images are embedded "
            "again.",
            file=sys.stderr,
        )
        return False


class Batch(NamedTuple):
    """What was embedded, and what was not."""

    features: np.ndarray  # float32 (N, D)
    files: list[Path]  # N
    skipped: list[tuple[Path, str]]  # with the reason


def embed_batch(encoder, paths, pool):
    """Embeds the files that can be read, in their order.

    Args:
        encoder: `_embed_encoder.OfFiles`.
        paths: a list of paths.
        pool: that of the threads which read them.

    Returns:
        A `Batch`.
    """
    try:
        given = list(pool.map(encoder.prepare, paths))
        return Batch(encoder(given), paths, [])
    except (OSError, NotAnImageError, tf.errors.InvalidArgumentError):
        reasons = dict(
            zip(paths, pool.map(encoder.why_not, paths), strict=True)
        )
        skipped = [(path, why) for path, why in reasons.items() if why]
        if not skipped:
            raise
        good = [path for path, why in reasons.items() if not why]
        batch = embed_batch(encoder, good, pool)
        return batch._replace(skipped=skipped + batch.skipped)


def _write_part(batches, folder, path):
    def names(files):
        return np.array([os.path.relpath(file, folder) for file in files])

    skipped = [entry for batch in batches for entry in batch.skipped]
    _embed_files.save_npz(
        path,
        features=np.concatenate([batch.features for batch in batches]),
        files=names(file for batch in batches for file in batch.files),
        skipped=names(file for file, _ in skipped),
        reasons=np.array([reason for _, reason in skipped]),
    )


def join(parts, images, settings, about, path):
    """Joins the parts, which need not fit into memory, in one file.

    Returns:
        Pairs (path, reason) of the files that are not in it.
    """
    folder = Path(settings.images)
    files, skipped, dim = [], images.unread + images.left_out, 0
    for part in parts:
        with open_npz(part, _ARRAYS_OF_A_PART) as found:
            files += found["files"].tolist()
            for name, reason in zip(
                found["skipped"], found["reasons"], strict=True
            ):
                skipped.append((folder / name, reason))
            dim = found["features"].shape[1]
    if not files:
        raise scanning.no_image(settings.images, skipped)
    with zipfile.ZipFile(path, "w") as joined:
        with joined.open("features.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(
                member,
                {
                    "descr": "<f4",
                    "fortran_order": False,
                    "shape": (len(files), dim),
                },
            )
            for part in parts:
                with open_npz(part, _ARRAYS_OF_A_PART) as found:
                    member.write(found["features"].astype("<f4").tobytes())
        for name, value in {"files": files, **about}.items():
            with joined.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.array(value))
    open_npz(path, ["features", "files", *about]).close()
    return skipped
