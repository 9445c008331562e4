"""Folders of the versions of an exported model."""

from moco_keras.system.paths import printable


def add_version(partial, path, version=None):
    """Makes a folder the next version, under a number that nobody else has.

    Args:
        partial: the folder, a `Path` on the same disk.
        path: the folder of all versions, a `Path`.
        version: the number, or None for the next.

    Returns:
        The version's folder, a `Path`.

    Raises:
        FileExistsError: if the version exists.
    """
    while True:
        folder = path / str(version or 1 + max(numbers(path), default=0))
        try:
            return partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            if version is not None:  # somebody has just made it
                raise exists(folder) from None


def exists(folder):
    """The error that a version exists."""
    return FileExistsError(
        f"A version must not exist yet. Received: {printable(folder)}, which "
        "does. Nothing was overwritten; choose another number, or none for the "
        "next."
    )


def numbers(path):
    """Numbers of the versions in a folder."""
    if not path.is_dir():
        return []
    return [int(p.name) for p in path.iterdir() if p.name.isdecimal()]


def find(path, version=None, kind="encoder"):
    """Finds the folder of a version.

    Args:
        path: a `Path`: the folder of all versions, of one, or of a run.
        version: its number, or None for the highest.
        kind: the name of the folder of all versions within that of a run.

    Returns:
        The version's folder, a `Path`, or None if there is none.
    """
    if not numbers(path) and (path / kind).is_dir():
        path = path / kind
    if version is not None:
        path = path / str(version)
    elif not is_export(path):
        path = path / str(max(numbers(path), default=""))
    return path if is_export(path) else None


def is_export(folder):
    """Whether a folder holds a SavedModel."""
    return (folder / "saved_model.pb").is_file()
