"""Embeds a folder of images by an exported encoder, and finds the nearest.

    python -m moco_keras.recipes.embed --encoder=saved_models/my_encoder \
        --images=FOLDER --out=features.npz --neighbours=QUERY.jpg

JPEG, PNG, GIF and BMP files of any sizes, in folders of any depth. What cannot
be decoded is skipped, and listed in features.skipped.csv. The file holds
`features`, the embeddings, float32 (N, D), of any length unless the encoder was
exported with --normalize, and `files`, their N paths within the folder. If the
program is interrupted, the same command goes on where it was; until then its
work is in a folder features.[...].partial.

With --neighbours it prints the images that are nearest to another one, and
draws them. A file that is there already is not made again.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import keras
import numpy as np
import tensorflow as tf

import moco_keras
from moco_keras import accelerators, arguments, image_files, knn, plotting
from moco_keras.image_files import printable
from moco_keras.recipes import _program, _record, _settings

_FILES_OF_A_PART = 1024
_NEIGHBOURS = 9
_GO_ON = "To go on, give the same command again."


@dataclasses.dataclass(frozen=True)
class EmbedSettings(_settings.Bounded):
    """What an embedding is told."""

    encoder: str | None = _settings.path(
        None, "folder of an export, of all its versions or of one"
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
    """Embeds the folder where that is not done, and shows neighbours."""
    for name in ("encoder", "images"):
        if not getattr(settings, name):
            raise ValueError(f"--{name} must be given; --help says what it is.")
    folder, out = Path(settings.images), Path(settings.out)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"--images must be a folder that exists. Received: {folder}."
        )
    if (
        out.suffix != ".npz"
        or not out.parent.is_dir()
        or folder.resolve() in out.resolve().parents
    ):
        raise ValueError(
            "--out must be a file that ends with .npz, in a folder that "
            f"exists, outside of --images. Received: --out={out}."
        )
    query = settings.neighbours and Path(settings.neighbours)
    if query and (reason := image_files.why_not(query)):
        raise ValueError(
            f"--neighbours must be an image. Received: {query}: {reason}."
        )
    encoder = _Encoder(settings.encoder)
    paths, unread, again = image_files.walk(folder)
    about = {
        "encoder": encoder.sha256,
        "images": _sha256(b"\0".join(_state(p, folder) for p in paths)),
        "on_bad_image": settings.on_bad_image,
    }
    # Of this work alone, so that nothing else stands in its way.
    name = _sha256(json.dumps(about).encode())[:12]
    place = out.with_suffix(f".{name}.partial")
    if out.exists():
        _refuse_another(out, about)
        print(f"{printable(out)} holds the embeddings of {printable(folder)}")
    else:
        place.mkdir(exist_ok=True)
        print(f"Embedding on: {accelerators.describe()}")
        try:
            parts = _embed_in_parts(encoder, paths, unread, settings, place)
            _join(parts, unread + again, settings, about)
        except KeyboardInterrupt:
            print(f"\n{_GO_ON}", file=sys.stderr)
            raise
        except OSError as error:  # of the disk, for images give none
            raise OSError(f"{error}\n{_GO_ON}") from error
    shutil.rmtree(place, ignore_errors=True)
    if query:
        _show_neighbours(encoder, query, folder, out)


class _Encoder:
    """An export, as a function of what files hold."""

    def __init__(self, path):
        self._layer = moco_keras.load_encoder(path, encoded=True)
        record = Path(self._layer.filepath, "encoder.json").read_bytes()
        self.sha256 = _sha256(record)
        self._dim = json.loads(record)["embedding_size"]

    def __call__(self, contents):
        if not contents:  # TensorFlow convolves no empty batch
            return np.zeros((0, self._dim), "float32")
        return self._layer(tf.constant(contents)).numpy()


def _sha256(contents):
    return hashlib.sha256(contents).hexdigest()


def _state(path, folder):
    """What tells a file from one that it was before."""
    name = os.fsencode(path.relative_to(folder))
    try:
        status = path.stat()
        state = f" {status.st_size} {status.st_mtime_ns}"
    except OSError:
        state = ""
    return name + state.encode()


def _refuse_another(out, about):
    """Refuses a file that is there and was made of something else."""
    try:
        with np.load(out) as file:
            found = {name: str(file[name]) for name in about if name in file}
    except (ValueError, EOFError, TypeError, AttributeError, BadZipFile):
        found = {}  # not such a file
    changed = [name for name in about if found.get(name) != about[name]]
    if changed:
        raise FileExistsError(
            "--out must be new, or made by the same command. Received: "
            f"{out}, which was not made with this --{changed[0]} as it is now. "
            "Nothing was changed; choose another, or remove it."
        )


def _embed_in_parts(encoder, paths, unread, settings, place):
    """Writes the embeddings of so many files at a time; returns these parts."""
    if settings.on_bad_image == "error" and unread:
        raise image_files.bad_image(*unread[0])
    bar = keras.utils.Progbar(len(paths), unit_name="file")
    parts = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), _FILES_OF_A_PART):
            end = min(start + _FILES_OF_A_PART, len(paths))
            parts.append(place / f"{len(parts):06}.npz")
            if not parts[-1].exists():
                batches = []
                for first in range(start, end, settings.batch_size):
                    last = min(first + settings.batch_size, end)
                    batch = _embed_batch(encoder, paths[first:last], pool)
                    if settings.on_bad_image == "error" and batch.skipped:
                        raise image_files.bad_image(*batch.skipped[0])
                    batches.append(batch)
                    bar.update(last, finalize=False)
                _write_part(batches, settings.images, parts[-1])
            bar.update(end)
    return parts


class _Batch(NamedTuple):
    features: np.ndarray  # float32 (N, D)
    files: list[Path]  # N
    skipped: list[tuple[Path, str]]  # with the reason


def _embed_batch(encoder, paths, pool):
    try:
        contents = list(pool.map(image_files.read, paths))
        return _Batch(encoder(contents), paths, [])
    except (OSError, tf.errors.InvalidArgumentError):
        reasons = dict(
            zip(paths, pool.map(image_files.why_not, paths), strict=True)
        )
        skipped = [(path, why) for path, why in reasons.items() if why]
        if not skipped:
            raise
        good = [path for path, why in reasons.items() if not why]
        batch = _embed_batch(encoder, good, pool)
        return batch._replace(skipped=skipped + batch.skipped)


def _write_part(batches, folder, path):
    def names(files):
        return np.array([os.path.relpath(file, folder) for file in files])

    skipped = [entry for batch in batches for entry in batch.skipped]
    _save(
        path,
        features=np.concatenate([batch.features for batch in batches]),
        files=names(file for batch in batches for file in batch.files),
        skipped=names(file for file, _ in skipped),
        reasons=np.array([reason for _, reason in skipped]),
    )


def _save(path, **arrays):
    """Writes a .npz file as a whole."""
    partial = path.with_suffix(".writing")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(path)


def _join(parts, skipped, settings, about):
    """Makes one file of the parts, which need not fit into memory."""
    out, folder = Path(settings.out), Path(settings.images)
    files = []
    for part in map(np.load, parts):
        files += part["files"].tolist()
        for name, reason in zip(part["skipped"], part["reasons"], strict=True):
            skipped.append((folder / name, reason))
    if not files:
        raise image_files.no_image(settings.images, skipped)
    dim = np.load(parts[0])["features"].shape[1]
    joined = np.lib.format.open_memmap(
        parts[0].with_name("features.npy"), "w+", "float32", (len(files), dim)
    )
    start = 0
    for part in parts:
        rows = np.load(part)["features"]
        joined[start : start + len(rows)] = rows
        start += len(rows)
    if skipped:
        print(image_files.summary(skipped))
        _record.write_skipped(out.with_suffix(".skipped.csv"), skipped)
    _save(out, features=joined, files=np.array(files), **about)
    print(f"The embeddings of {len(files)} images are in {printable(out)}")


def _show_neighbours(encoder, query, folder, out):
    """Prints and draws the images that are nearest to another."""
    found = np.load(out)
    bank = found["features"]
    queries = encoder([query.read_bytes()])
    k = min(_NEIGHBOURS + 1, len(bank))
    (similarities,), (rows,) = knn.nearest(bank, queries, k)
    nearest = [
        (printable(name), similarity, folder / name)
        for name, similarity in zip(
            found["files"][rows], similarities, strict=True
        )
        if not (folder / name).samefile(query)
    ][:_NEIGHBOURS]
    if not nearest:
        print(
            f"{printable(folder)} holds no other image than {printable(query)}"
        )
        return
    print(f"Nearest to {printable(query)}, and their cosines:")
    for name, similarity, _ in nearest:
        print(f"  {similarity:.3f}  {name}")
    picture = out.with_name(f"{out.stem}-{query.stem}.png")
    plotting.nearest(
        _picture(query),
        [
            (f"{name}\n{similarity:.3f}", _picture(path))
            for name, similarity, path in nearest
        ],
        picture,
    )
    print(f"They are drawn in {printable(picture)}")


def _picture(path):
    """Its pixels, or some of them where it is large."""
    image = image_files.decode(path.read_bytes()).numpy()
    step = max(1, max(image.shape) // 256)
    return image[::step, ::step].copy()


if __name__ == "__main__":
    _program.run(EmbedSettings(), embed)
