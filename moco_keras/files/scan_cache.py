"""Results of long scans of folders, kept so that files are looked at once.

They are in the user's folder for caches, `$XDG_CACHE_HOME/moco_keras/scans` or
`~/.cache/moco_keras/scans`, a file for each folder of images. It is always
right to remove them.
"""

import hashlib
import importlib.util
import json
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL

from moco_keras.files import walking
from moco_keras.files.header import Header
from moco_keras.version import __version__

# A file may change once more without another time of change.
_CLOCK = 2e9  # nanoseconds
_RULES = 2  # one more with every change of what is an image, or of `Header`
_OPTIONAL = "tifffile", "imagecodecs"  # they decide what can be read


class Verdict(NamedTuple):
    """What a look at a file found: an image, or why it is not one."""

    digest: bytes = b""
    header: Header | None = None
    reason: str | None = None


class Kept:
    """Verdicts on files that are as they were.

    Args:
        folder: a `Path`, in which the files are.
        decoded: whether the verdicts are of files that were decoded.
    """

    def __init__(self, folder, decoded):
        self._folder = folder
        real = os.fsencode(os.path.realpath(folder))
        name = hashlib.sha256(real + b"\0" * decoded).hexdigest()[:16]
        self._path = _place() / f"{name}.npz"
        there = [bool(importlib.util.find_spec(name)) for name in _OPTIONAL]
        versions = __version__, PIL.__version__, _RULES
        self._of = repr((*versions, there, decoded)).encode()
        self._now = time.time_ns()
        self._keys = np.zeros(0, "uint64")
        try:
            with self._path.open("rb") as file, np.load(file) as found:
                kinds = json.loads(str(found["kinds"]))
                self._keys = found["keys"]
                self._rows = found["rows"]
                self._digests = found["digests"]
            self._kinds = [
                (header and Header(*header), reason) for header, reason in kinds
            ]
        except Exception:  # no file, or a damaged one
            self._keys = np.zeros(0, "uint64")

    def find(self, paths):
        """The verdict on each file, or None if it is not known.

        Args:
            paths: of files within the folder, texts.

        Returns:
            A list of verdicts, and the keys of the files, uint64 (N,); 0 for a
            file that cannot be kept.
        """
        names = walking.names_in(self._folder, paths)
        keys = map(self._key, paths, names)
        keys = np.fromiter(keys, "uint64", len(paths))
        verdicts = [None] * len(paths)
        if not len(self._keys):
            return verdicts, keys
        places = np.searchsorted(self._keys, keys)
        places = np.minimum(places, len(self._keys) - 1)
        known = np.flatnonzero(self._keys[places] == keys)
        places = places[known]
        digests, headers = self._digests[places], {}
        for i, row, digest in zip(
            known.tolist(),
            map(tuple, self._rows[places].tolist()),
            map(bytes, digests),
            strict=True,
        ):
            if row not in headers:  # most are alike
                headers[row] = self._header(*row)
            verdicts[i] = Verdict(digest, *headers[row])
        return verdicts, keys

    def _header(self, kind, height, width):
        """A header, or None, and a reason, or None."""
        header, reason = self._kinds[kind]
        if header is not None:
            header = header._replace(height=height, width=width)
        return header, reason

    def _key(self, path, name):
        """A number that another name, size or time of change changes."""
        try:
            status = os.stat(path)  # noqa: PTH116 (a `Path` is slow)
        except OSError:
            return 0
        if self._now - status.st_mtime_ns < _CLOCK:
            return 0
        about = f"{name}\0{status.st_size} {status.st_mtime_ns} "
        # Some programs change a file and give it back its time.
        about += f"{status.st_ctime_ns} "
        about = about.encode("utf-8", "surrogateescape") + self._of
        digest = hashlib.blake2b(about, digest_size=8)
        return int.from_bytes(digest.digest(), "little")

    def write(self, keys, verdicts):
        """Keeps the verdicts on all files.

        Args:
            keys: as `find` returned them.
            verdicts: a list of `Verdict`s.

        Raises:
            OSError: if they cannot be written.
        """
        order = np.argsort(keys)
        order = order[keys[order] > 0]
        kinds, rows = {}, np.zeros((len(order), 3), "int32")
        digests = np.zeros((len(order), 32), "uint8")
        for row, i in enumerate(order):
            digest, header, reason = verdicts[i]
            size = 0, 0
            if header is not None:
                size = header.height, header.width
                header = header._replace(height=0, width=0)
                digests[row] = np.frombuffer(digest, "uint8")
            kind = kinds.setdefault((header, reason), len(kinds))
            rows[row] = kind, *size
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(f".{os.getpid()}.writing")
        with partial.open("wb") as file:
            np.savez(
                file,
                keys=keys[order],
                rows=rows,
                digests=digests,
                kinds=json.dumps(list(kinds)),
            )
        partial.replace(self._path)


def _place():
    caches = os.environ.get("XDG_CACHE_HOME")
    if not caches:
        try:
            caches = Path("~/.cache").expanduser()
        except RuntimeError:  # there is no home
            caches = tempfile.gettempdir()
    return Path(caches) / "moco_keras" / "scans"
