"""Folders of image files, some of which may be something else."""

import concurrent.futures
import errno
import hashlib
import heapq
import os
import re
import stat
import sys
import time
from pathlib import Path
from typing import NamedTuple

import keras
import tensorflow as tf

from moco_keras import arguments
from moco_keras.data import decoding
from moco_keras.system.paths import printable

_MAX_BYTES = 4 * decoding.MAX_PIXELS
_AGAIN = "A link to what has another name there"
# In the text of a PNG file that `plotting.nearest` drew.
MARK = "Software", "moco_keras"
_DRAWN = "A picture that embed drew"
_RUN = "The folder of a run"
_PATIENCE = 2  # seconds of a scan without a progress bar


class Scan(NamedTuple):
    """What a folder of images holds.

    Attributes:
        files: paths of the images, in the order of `key`.
        digests: SHA-256 of the contents of each.
        skipped: (path, reason) of each file that is not an image, and of what
            `walk` leaves out.
    """

    files: list[Path]
    digests: list[bytes]
    skipped: list[tuple[Path, str]]


def scan(folder, on_bad_image="skip"):
    """Finds the images in a folder and the folders in it, by decoding them.

    Links are followed, see `walk`, and what begins with a dot is left out. On
    a terminal, a scan of more than two seconds shows its progress.

    Args:
        folder: its path.
        on_bad_image: "skip" what cannot be decoded, or end with an "error" at
            the first.

    Returns:
        A `Scan`.

    Raises:
        ValueError: if there is no image, or, with "error", if there is a file
            that is not an image.
    """
    if on_bad_image not in ("skip", "error"):
        raise ValueError(
            '`on_bad_image` must be "skip" or "error". '
            f"Received: on_bad_image={on_bad_image!r}."
        )
    paths, skipped, left_out = walk(folder)
    files, digests = [], []
    for path, digest, reason in examined(paths, _digest_of_image):
        if reason is None:
            files.append(path)
            digests.append(digest)
        else:
            skipped.append((path, reason))
        if skipped and on_bad_image == "error":
            raise bad_image(*skipped[0])
    if not files:
        raise no_image(folder, skipped + left_out)
    return Scan(files, digests, skipped + left_out)


def examined(paths, describe):
    """Describes images by what their files hold, on all cores.

    On a terminal, more than two seconds of it show their progress.

    Args:
        paths: a list of paths.
        describe: function of the bytes of a file, which raises a
            `tf.errors.OpError` if they are not an image.

    Yields:
        (path, description, None) for an image, (path, None, reason) for what is
        not one; in the order of the paths.
    """
    bar = keras.utils.Progbar(len(paths), unit_name="file")
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            found_in = pool.map(lambda path: _examine(path, describe), paths)
            for number, found in enumerate(found_in):
                bar_due = time.monotonic() > start + _PATIENCE
                if bar_due and sys.stdout.isatty():
                    bar.update(number + 1)
                yield found
        finally:  # of those that nobody waits for any more
            pool.shutdown(cancel_futures=True)


def _digest_of_image(contents):
    """SHA-256 of what the file of an image holds."""
    decoding.decode(contents)
    return hashlib.sha256(contents).digest()


def bad_image(path, reason):
    """The error that a file is not an image, with `on_bad_image="error"`."""
    return ValueError(
        "A folder of images must hold nothing else. Received: "
        f"{printable(path)}: {reason}. Move it elsewhere, or skip such files, "
        'with on_bad_image="skip".'
    )


def no_image(folder, skipped):
    """The error that a folder holds no image."""
    first = ""
    if skipped:
        path, reason = skipped[0]
        first = f"; the first is {printable(path)}: {reason}"
    return ValueError(
        "A folder of images must hold at least one JPEG, PNG, GIF or BMP file "
        f"that can be decoded. Received: {printable(folder)}, with "
        f"{len(skipped)} other files{first}."
    )


def summary(skipped):
    """Describes what `scan` skipped, one line for each reason."""
    lines = [f"Skipped, and not taken as images: {len(skipped)}"]
    by_reason = {}
    for path, reason in skipped:
        by_reason.setdefault(reason, []).append(path)
    for reason, paths in by_reason.items():
        names = ", ".join(printable(path.name) for path in paths[:3])
        more = ", ..." if len(paths) > 3 else ""
        lines.append(f"  {len(paths)} {reason}: {names}{more}")
    return "\n".join(lines)


class Walk(NamedTuple):
    """The files of a folder and of the folders in it.

    Attributes:
        files: their paths, in the order of `key`.
        unread: (path, reason) of each folder that could not be looked into.
        left_out: (path, reason) of each link to what has another name there, of
            each folder that was reached once more by such a link, and of each
            folder of a run, which holds pictures of its own.
    """

    files: list[Path]
    unread: list[tuple[Path, str]]
    left_out: list[tuple[Path, str]]


def key(path):
    """Sorts paths folder by folder, alike in every locale and file system."""
    return os.fsencode(path).replace(os.fsencode(os.sep), b"\0")


def walk(folder):
    """Finds the files of a folder and of the folders in it, as `scan` does.

    Each file and each folder is taken once: by its own name if it is in the
    folder, and otherwise by that of the first link to it. Each hard link counts
    as a file, because nothing tells which of them would be the file.

    Args:
        folder: its path.

    Returns:
        A `Walk`.
    """
    files, unread, left_out = [], [], []
    seen, real = set(), {}  # folders, and by the name that each was taken by
    places, folder_links, file_links = [arguments.path(folder=folder)], [], []
    while places or folder_links:
        # Links are followed after everything that is there without them.
        place = places.pop() if places else heapq.heappop(folder_links)[1]
        target = _target(place)
        if target in seen:
            left_out.append((place, _AGAIN))
            continue
        seen.add(target)
        real[place] = target
        try:
            with os.scandir(place) as entries:
                shown = [e for e in entries if not e.name.startswith(".")]
        except OSError as error:
            unread.append((place, error.strerror))
            continue
        if len(seen) > 1 and _is_run({entry.name for entry in shown}):
            left_out.append((place, _RUN))
            continue
        for entry in shown:
            if not entry.is_symlink():
                (places if entry.is_dir() else files).append(Path(entry))
            elif _is_folder(entry):
                heapq.heappush(folder_links, (key(entry), Path(entry)))
            else:
                file_links.append(Path(entry))
    taken = {real[path.parent] / path.name for path in files if file_links}
    for path in sorted(file_links, key=key):
        target = _target(path)
        if target in taken:
            left_out.append((path, _AGAIN))
        else:
            taken.add(target)
            files.append(path)
    left_out.sort(key=lambda entry: key(entry[0]))
    return Walk(sorted(files, key=key), unread, left_out)


def _is_run(names):
    """Whether a folder with these names is that of a training run."""
    return "settings.json" in names and names & {"checkpoints", "history.csv"}


def _target(path):
    # `Path.resolve` fails where links form a circle.
    return Path(os.path.realpath(path))


def _is_folder(link):
    try:
        return link.is_dir()
    except OSError:  # it cannot be followed, as `scan` will find
        return False


def read(path):
    """Returns the contents of a file as bytes.

    Raises:
        OSError: if it is not a file, or longer than an image can be, or a
            picture that `plotting.nearest` drew.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a file")
    if status.st_size > _MAX_BYTES:
        raise OSError(errno.EFBIG, f"{status.st_size / 1e6:.0f} MB")
    contents = path.read_bytes()
    if is_drawn(contents):
        raise OSError(errno.EINVAL, _DRAWN)
    return contents


def is_drawn(contents):
    """Whether `plotting.nearest` drew the picture in a file.

    Args:
        contents: bytes of the file, all or the first 1024.
    """
    return "\0".join(MARK).encode() in contents[:1024]


def why_not(path):
    """Returns why a file is not an image, or None if it is one."""
    return _examine(path, decoding.decode)[2]


def _examine(path, describe):
    """What `examined` yields for a file."""
    try:
        return path, describe(read(path)), None
    except OSError as error:
        return path, None, error.strerror
    except tf.errors.OpError as error:
        # Without the name of the operation.
        line = error.message.splitlines()[0]
        line = re.sub(r"\{\{.*?\}\} | ?\[.*", "", line)
        return path, None, line.rstrip(".")
