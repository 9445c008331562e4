"""The files that `embed` writes, each of which is checked to be whole."""

import hashlib
import re
import zipfile

import numpy as np

from moco_keras.recipes._run_files import HOW_TO_RESUME
from moco_keras.system import paths
from moco_keras.system.paths import printable


def open_npz(path, names):
    """Opens a .npz file that is checked to be whole.

    NumPy compares no checksum if a damaged header has it read less.

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


def save_npz(path, **arrays):
    """Writes a .npz file as a whole."""
    partial = path.with_suffix(".writing")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(path)


def readable_out_errors(out):
    """Has errors of writing --out say what it needs."""
    return paths.readable_write_errors(
        out,
        "--out must be in a folder that can be written to, on a disk that has "
        f"room. Received: --out={{place}}: {{reason}}.\n{HOW_TO_RESUME}",
    )


def unfinished_folders(out):
    """Folders with parts of this file that were never joined."""
    name = re.compile(re.escape(out.name) + r"\.[0-9a-f]{12}\.partial")
    return [
        path
        for path in out.parent.iterdir()
        if name.fullmatch(path.name) and path.is_dir()
    ]


def refuse_another(out, about):
    """Refuses a file that exists and was made from something else.

    Args:
        out: the file.
        about: by flag, what it would be made from now.

    Raises:
        FileExistsError: if it differs.
    """
    try:
        with open_npz(out, ["features", "files", *about]) as file:
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


def lists_skipped(path):
    """Whether a file is a list of what was skipped."""
    try:
        with path.open("rb") as file:
            return file.readline().strip() == b"file,reason"
    except OSError:
        return False


def sha256(contents):
    """The digest of bytes, in hexadecimal."""
    return hashlib.sha256(contents).hexdigest()
