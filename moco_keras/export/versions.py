"""Folders of an encoder's versions."""

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
