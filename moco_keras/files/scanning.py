"""Folders of image files, some of which may be something else."""

import concurrent.futures
import contextlib
import errno
import functools
import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

from moco_keras import arguments
from moco_keras.files import headers, reading, walking
from moco_keras.files.decoding import MAX_PIXELS
from moco_keras.files.header import KINDS, Header, NotAnImageError, one_line
from moco_keras.files.progress import Progress
from moco_keras.files.scan_cache import Kept, Verdict
from moco_keras.system.paths import printable

_MAX_BYTES = 4 * MAX_PIXELS
_HEAD, _TAIL = 8192, 4096  # bytes of a long file that are looked at
_UNCOMPRESSED = "BMP", "TIFF", ".npy"  # they may be
_SAMPLES = 16  # of as many bytes as at the end, of those
# Files of which a thread takes a part at a time. Only those of a block wait,
# because each part that waits takes memory.
_BLOCK, _PART = 4096, 8
# In the text of a PNG file that `plotting.nearest` drew.
MARK = "Software", "moco_keras"
_DRAWN = "A picture that embed drew"


class Scan(NamedTuple):
    """What a folder of images holds.

    Attributes:
        files: paths of the images, texts, in the order of `walking.key`.
        digests: of each, bytes that two different images hardly share: SHA-256
            of its size and of its first and last bytes, of a short file, or of
            more parts of a file that may be uncompressed.
        headers: of each, a `headers.Header`.
        skipped: (path, reason) of each file that is not an image, and of what
            `walking.walk` leaves out.
    """

    files: list[str]
    digests: list[bytes]
    headers: list[Header]
    skipped: list[tuple[Path, str]]


def scan(folder, on_bad_image="skip", decode=False):
    """Finds the images in a folder and the folders in it.

    Headers and ends of files are looked at. A file that seems to be cut off is
    decoded. Links are followed, see `walking.walk`, and what begins with a dot
    is left out. A scan of more than two seconds shows its progress.

    Args:
        folder: its path.
        on_bad_image: "skip" what is no image, or end with an "error" at the
            first.
        decode: whether all images are decoded, which finds all damage.

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
    folder = arguments.path(folder=folder)
    paths, skipped, left_out = walking.walk(folder)
    if skipped and on_bad_image == "error":
        raise bad_image(*skipped[0])
    found = Scan([], [], [], skipped)
    with contextlib.closing(_verdicts(folder, paths, decode)) as verdicts:
        for path, verdict in zip(paths, verdicts, strict=True):
            digest, header, reason = verdict
            if reason is None:
                found.files.append(path)
                found.digests.append(digest)
                found.headers.append(header)
            elif on_bad_image == "error":
                raise bad_image(path, reason)
            else:
                skipped.append((Path(path), reason))
    if not found.files:
        raise no_image(folder, skipped + left_out)
    return found._replace(skipped=skipped + left_out)


def _verdicts(folder, paths, decode):
    """Yields the `Verdict` on each file, of an earlier scan if it is known."""
    kept = Kept(folder, decode)
    look = functools.partial(_look, decode=decode)
    verdicts, keys = kept.find(paths)
    rest = [i for i, verdict in enumerate(verdicts) if verdict is None]
    progress = Progress(len(rest))
    looked = examined([paths[i] for i in rest], look, progress)
    try:
        with contextlib.closing(looked):
            for i in range(len(paths)):
                if verdicts[i] is None:
                    _, found, reason = next(looked)
                    verdicts[i] = Verdict(*(found or ()), reason=reason)
                    if isinstance(reason, _Unread):
                        keys[i] = 0  # it is not kept
                yield verdicts[i]
    finally:  # also of a scan that is interrupted
        if progress.shown:
            keys[[verdict is None for verdict in verdicts]] = 0
            try:
                kept.write(keys, verdicts)
            except OSError as error:
                print(f"The result of the scan could not be kept: {error}")


def examined(paths, describe, progress):
    """Describes images by their files, on all cores.

    Args:
        paths: a list of paths.
        describe: function of a binary file, which raises a `NotAnImageError`
            if it is not an image.
        progress: a `Progress`, which is shown, or None.

    Yields:
        (path, description, None) for an image, (path, None, reason) for what is
        not one; in the order of the paths.
    """

    def examine(some):
        return [_examine(path, describe) for path in some]

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            done = 0
            for start in range(0, len(paths), _BLOCK):
                block = paths[start : start + _BLOCK]
                parts = [
                    block[i : i + _PART] for i in range(0, len(block), _PART)
                ]
                for found in pool.map(examine, parts):
                    done += len(found)
                    if progress is not None:
                        progress.show(done)
                    yield from found
        finally:  # of those that nobody waits for any more
            pool.shutdown(cancel_futures=True)


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
        f"A folder of images must hold at least one {KINDS} "
        "file that can be read. Received: "
        f"{printable(folder)}, with {len(skipped)} other files{first}."
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


@contextlib.contextmanager
def opened(path):
    """A binary file that may be an image.

    Raises:
        OSError: if it is not a file, or cannot be read.
        NotAnImageError: if it is longer than an image can be, or a picture that
            `plotting.nearest` drew.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a file")
    if status.st_size > _MAX_BYTES:
        raise NotAnImageError(f"File too large: {status.st_size / 1e6:.0f} MB")
    with path.open("rb") as file:
        if is_drawn(file.read(1024)):
            raise NotAnImageError(_DRAWN)
        file.seek(0)
        yield file


def is_drawn(contents):
    """Whether `plotting.nearest` drew the picture in a file.

    Args:
        contents: bytes of the file, all or the first 1024.
    """
    return "\0".join(MARK).encode() in contents[:1024]


def read(path):
    """The pixels (H, W, C) of an image file.

    Raises:
        OSError, NotAnImageError: as `opened` and `reading.read`.
    """
    with opened(path) as file:
        return reading.read(file)


def why_not(path, read=reading.read):
    """Returns why a file is not an image that can be read, or None if it is.

    Args:
        path: of the file.
        read: function of the open file, which raises `OSError` or
            `NotAnImageError`.
    """
    try:
        with opened(path) as file:
            read(file)
    except (OSError, NotAnImageError) as error:
        return _reason(error)
    return None


def _examine(path, describe):
    """What `examined` yields for a file."""
    try:
        with opened(Path(path)) as file:
            return path, describe(file), None
    except (OSError, MemoryError, NotAnImageError) as error:
        return path, None, _reason(error)


class _Unread(str):
    """The reason why a file could not be read, which may pass."""


def _reason(error):
    if isinstance(error, NotAnImageError):
        return str(error)
    return _Unread(getattr(error, "strerror", None) or one_line(error))


def _look(file, decode=False):
    """The digest and the header of an image file."""
    head = file.read(_HEAD + _TAIL)
    size = len(head)
    if size == _HEAD + _TAIL:
        size = file.seek(0, os.SEEK_END)
    if size <= _HEAD + _TAIL:
        looked_at = head
    else:
        head = head[:_HEAD]
        file.seek(size - _TAIL)
        looked_at = b"%d %s%s" % (size, head, file.read())
    header = headers.of(file)
    digest = hashlib.sha256(looked_at)
    if len(looked_at) > len(head) and header.kind in _UNCOMPRESSED:
        # Their first and last pixels may be alike in all images.
        for place in range(0, size, -(-size // _SAMPLES)):
            file.seek(place)
            digest.update(file.read(_TAIL))
    if decode or not header.whole:
        reading.read(file, header)
    return digest.digest(), header
