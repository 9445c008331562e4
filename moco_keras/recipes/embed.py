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

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

import moco_keras
from moco_keras import arguments, export, plotting
from moco_keras.data import decoding, image_files
from moco_keras.distribution import accelerators
from moco_keras.evaluation import knn
from moco_keras.recipes import _cli, _run_dir, _settings
from moco_keras.system import ownership, signals
from moco_keras.system.paths import printable

_FILES_OF_A_PART = 1024
_OF_A_PART = ("features", "files", "skipped", "reasons")
_NEIGHBOURS = 9
_LONGEST_NAME = 200  # bytes; others of 255 are made of it
_STOPPING = (
    "Stopping after these images; a second signal (Ctrl-C) stops at once."
)
_GO_ON = "To go on, give the same command again."


@dataclasses.dataclass(frozen=True)
class EmbedSettings(_settings.Bounded):
    """What an embedding is told."""

    encoder: str | None = _settings.path(
        None, "folder of an export, of all its versions or of one, or of a run"
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
    picture = query and _picture_file(query, out)
    left = _left_over(out)
    with contextlib.nullcontext() if out.exists() and not left else _own(out):
        encoder = _Encoder(settings.encoder)
        images = _find(folder)
        about = {
            "encoder": encoder.sha256,
            "images": _sha256(b"\0".join(images.states)),
            "on_bad_image": settings.on_bad_image,
        }
        if out.exists():
            _refuse_another(out, about)
            print(
                f"{printable(out)} holds the embeddings of {printable(folder)}"
            )
        else:
            _make(encoder, images, settings, about)
        for place in _left_over(out):  # which nobody will ever go on with
            shutil.rmtree(place, ignore_errors=True)
    if query:
        _show_neighbours(encoder, query, settings, picture)


def _picture_file(query, out):
    """Where the picture of a query is drawn; each query has its own."""
    if reason := image_files.why_not(query):
        raise ValueError(
            "--neighbours must be an image. Received: "
            f"{printable(query)}: {reason}."
        )
    real = Path(os.path.realpath(query))
    stem = real.stem
    while len(os.fsencode(stem)) > 32:  # of the 255 bytes that a name may have
        stem = stem[:-1]
    path = _sha256(os.fsencode(real))[:8]
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
        return image_files.is_drawn(file.read(1024))


def _left_over(out):
    """Folders of parts of this file, begun and not finished."""
    name = re.compile(re.escape(out.stem) + r"\.[0-9a-f]{12}\.partial")
    return [
        path
        for path in out.parent.iterdir()
        if name.fullmatch(path.name) and path.is_dir()
    ]


@contextlib.contextmanager
def _own(out):
    with contextlib.ExitStack() as stack:
        with _writing_beside(out):
            stack.enter_context(ownership.hold(out, "The file of --out"))
        yield


@contextlib.contextmanager
def _writing_beside(out):
    try:
        yield
    except BlockingIOError:  # somebody else makes it
        raise
    except OSError as error:
        raise OSError(
            "--out must be in a folder that can be written to, on a disk that "
            f"has room. Received: --out={printable(out)}: "
            f"{error.strerror or error}.\n{_GO_ON}"
        ) from error


class _Encoder:
    """An export, as a function of what files hold."""

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
        self.sha256 = _sha256(record)

    def __call__(self, contents):
        if not contents:  # on which older exports fail
            return np.zeros((0, self._dim), "float32")
        return self._layer(tf.constant(contents)).numpy()


def _sha256(contents):
    return hashlib.sha256(contents).hexdigest()


class _Images(NamedTuple):
    """What a folder of images holds; see `image_files.walk`."""

    files: list[Path]
    states: list[bytes]
    unread: list[tuple[Path, str]]
    left_out: list[tuple[Path, str]]


def _find(folder):
    files, unread, left_out = image_files.walk(folder)
    return _Images(files, [_state(f, folder) for f in files], unread, left_out)


def _state(path, folder):
    """What tells a file from one that it was before."""
    name = os.fsencode(path.relative_to(folder))
    try:
        status = path.stat()
        state = f" {status.st_size} {status.st_mtime_ns}"
    except OSError:
        state = ""
    return name + state.encode()


def _open(path, names):
    """Opens a .npz file that is checked to be whole.

    NumPy compares no checksum where a damaged header has it read less.

    Args:
        path: of the file.
        names: of arrays that it must hold.

    Raises:
        ValueError: if it is damaged, or something else.
    """
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} has another checksum")
        file = np.load(path)
    except Exception as error:  # a damaged file has any part fail
        raise ValueError(str(error) or type(error).__name__) from error
    missing = sorted(set(names) - set(file))
    if missing:
        file.close()
        raise ValueError(f"it lacks {', '.join(missing)}")
    return file


def _refuse_another(out, about):
    """Refuses a file that is there and was made of something else."""
    try:
        with _open(out, ["features", "files", *about]) as file:
            found = {name: str(file[name]) for name in about}
    except ValueError as error:
        reason = f"is no file of embeddings, or is damaged: {error}"
    else:
        changed = [name for name in about if found[name] != about[name]]
        if not changed:
            return
        reason = f"was not made with this --{changed[0]} as it is now"
    raise FileExistsError(
        "--out must be new, or made by the same command. Received: "
        f"{printable(out)}, which {reason}. Nothing was changed; choose "
        "another, or remove it, and it is made again."
    )


def _make(encoder, images, settings, about):
    """Embeds all images, or what is left to embed."""
    out = Path(settings.out)
    skipped_file = out.with_suffix(".skipped.csv")
    if skipped_file.exists() and not _lists_skipped(skipped_file):
        raise FileExistsError(
            "Images that are skipped are listed beside --out. Received: "
            f"{printable(skipped_file)}, which is something else. Nothing was "
            "changed; move it elsewhere, or choose another --out."
        )
    # Of this work alone, so that nothing else stands in its way.
    name = _sha256(json.dumps(about).encode())[:12]
    place = out.with_suffix(f".{name}.partial")
    print(f"Embedding on: {accelerators.describe()}")
    stops = []  # numbers of signals
    try:
        with (
            _writing_beside(out),
            # Noted, for TensorFlow replaces what is raised within its calls.
            signals.answered(stops.append, _STOPPING, lambda: _GO_ON),
        ):
            place.mkdir(exist_ok=True)
            parts = _embed_in_parts(encoder, images, settings, place, stops)
            joined = place / "joined.npz"
            skipped = _join(parts, images, settings, about, joined)
            if out.exists():  # since
                _refuse_another(out, about)
            _run_dir.write_skipped(skipped_file, skipped)
            joined.replace(out)
    except (KeyboardInterrupt, SystemExit):
        print(f"\n{_GO_ON}", file=sys.stderr)
        raise
    if skipped:
        print(image_files.summary(skipped))
    with np.load(out) as file:
        count = len(file["files"])
    print(f"The embeddings of {count} images are in {printable(out)}")


def _lists_skipped(path):
    """Whether a file is a list of what was skipped."""
    try:
        with path.open("rb") as file:
            return file.readline().strip() == b"file,reason"
    except OSError:
        return False


def _embed_in_parts(encoder, images, settings, place, stops):
    """Writes the embeddings of so many files at a time; returns these parts."""
    files, folder = images.files, Path(settings.images)
    if settings.on_bad_image == "error" and images.unread:
        raise image_files.bad_image(*images.unread[0])
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
                    batch = _embed_batch(encoder, files[first:last], pool)
                    if settings.on_bad_image == "error" and batch.skipped:
                        raise image_files.bad_image(*batch.skipped[0])
                    batches.append(batch)
                    bar.update(last, finalize=False)
                    if stops:
                        _end(stops[0])
                # Else a disk that vanished would be one of bad images.
                for i in range(start, end):
                    if _state(files[i], folder) != images.states[i]:
                        raise ValueError(
                            "--images must stay as they are while they are "
                            f"embedded. Received: {printable(files[i])}, which "
                            f"has changed or is gone.\n{_GO_ON}"
                        )
                _write_part(batches, settings.images, parts[-1])
            bar.update(end)
    return parts


def _end(number):
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _is_done(part):
    """Whether a part is there; says so where it is damaged."""
    if not part.exists():
        return False
    try:
        with _open(part, _OF_A_PART):
            return True
    except ValueError as error:
        print(
            f"\n{printable(part)} is damaged: {error}. Its images are embedded "
            "again.",
            file=sys.stderr,
        )
        return False


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


def _join(parts, images, settings, about, path):
    """Makes one file of the parts, which need not fit into memory.

    Returns:
        (path, reason) of the files that are not in it.
    """
    folder = Path(settings.images)
    files, skipped, dim = [], images.unread + images.left_out, 0
    for part in parts:
        with _open(part, _OF_A_PART) as found:
            files += found["files"].tolist()
            for name, reason in zip(
                found["skipped"], found["reasons"], strict=True
            ):
                skipped.append((folder / name, reason))
            dim = found["features"].shape[1]
    if not files:
        raise image_files.no_image(settings.images, skipped)
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
                with _open(part, _OF_A_PART) as found:
                    member.write(found["features"].astype("<f4").tobytes())
        for name, value in {"files": files, **about}.items():
            with joined.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.array(value))
    _open(path, ["features", "files", *about]).close()
    return skipped


def _show_neighbours(encoder, query, settings, picture):
    """Prints and draws the images that are nearest to another."""
    folder, out = Path(settings.images), Path(settings.out)
    with np.load(out) as found:
        bank, files = found["features"], found["files"]
    queries = encoder([query.read_bytes()])
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
    pictures = [(*found, _picture(folder / found[0])) for found in nearest]
    with _writing_beside(out), ownership.scratch(out.parent) as place:
        partial = place / picture.name
        plotting.nearest(_picture(query), pictures, partial)
        partial.replace(picture)
    print(f"They are drawn in {printable(picture)}")


def _picture(path):
    """Its pixels, or some of them where it is large."""
    image = decoding.decode(path.read_bytes()).numpy()
    step = max(1, max(image.shape) // 256)
    return image[::step, ::step].copy()


if __name__ == "__main__":
    _cli.run(EmbedSettings(), embed)
