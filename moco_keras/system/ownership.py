"""One owner at a time for a folder, or for a file that is being made."""

import contextlib
import datetime
import os
import shutil
import socket
import uuid
import warnings
from pathlib import Path

# The lock file of a folder, in it.
LOCK = ".lock"
_SCRATCH = ".partial-"
_OWNER = "process "  # how a lock file begins


@contextlib.contextmanager
def made(folder, exist_ok=True):
    """Makes a folder, and removes it again if nothing was put into it.

    Args:
        folder: a `Path`; folders above it that are missing are made, too.
        exist_ok: whether it may be there already, and then stays.

    Raises:
        FileExistsError: if it is there, and may not be.
        NotADirectoryError: if it is a file, or in one.
        OSError: if it cannot be made.
    """
    missing = []
    for place in (folder, *folder.parents):
        if place.is_dir():
            break
        if place.exists():
            raise NotADirectoryError(
                "A folder can be made where no file is in the way. Received: "
                f"{folder}; {place} is a file. Choose another folder, or move "
                "the file."
            )
        missing.append(place)
    folder.mkdir(parents=True, exist_ok=exist_ok)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            for place in missing:
                place.rmdir()


@contextlib.contextmanager
def scratch(folder):
    """Makes a folder in another one, in which to prepare what is moved there.

    It is removed at the end, and so are those that dead processes left there.

    Args:
        folder: a `Path`.

    Yields:
        The new one, a `Path`.

    Raises:
        OSError: if it cannot be made.
    """
    what = "A folder for what is being made"
    for left in folder.glob(f"{_SCRATCH}*"):
        if _is_free(left, what):
            shutil.rmtree(left, ignore_errors=True)
    name = uuid.uuid4().hex
    # It gets the name by which others know it when it is held.
    new, place = folder / f".new-{name}", folder / f"{_SCRATCH}{name}"
    try:
        new.mkdir()
        with hold(new, what):
            new.rename(place)
            yield place
    finally:
        for left in (new, place):
            shutil.rmtree(left, ignore_errors=True)


def _is_free(place, what):
    try:
        with hold(place, what) as alone:
            return alone
    except OSError:
        return False


@contextlib.contextmanager
def hold(place, what):
    """Locks a place for this process while the context lasts.

    A lock file says who holds it: `.lock` in a folder, `.NAME.lock` beside a
    file. The lock itself is the operating system's, which frees it when its
    owner dies, however that happens. Processes that the owner forks share it.

    Args:
        place: path of a folder, or of a file that need not exist yet.
        what: the place in words, "The folder of a run", for messages.

    Yields:
        Whether others are kept out. False, after a warning, where the disk or
        the system has no locks.

    Raises:
        BlockingIOError: if it is held already, by another process or by this
            one.
        FileExistsError: if another file has the name of the lock file.
        OSError: if the lock file cannot be written.
    """
    place = Path(place)
    if place.is_dir():
        lock = place / LOCK
    else:
        lock = place.with_name(f".{place.name}.lock")
    file, alone = _locked(lock, place, what)
    try:
        since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        owner = f"{_OWNER}{os.getpid()} on {socket.gethostname()} since {since}"
        os.truncate(file, 0)
        os.write(file, owner.encode())
        yield alone
    finally:
        with contextlib.suppress(OSError):
            if _is_at(file, lock):  # the folder may have been moved
                lock.unlink()
        os.close(file)


def _locked(lock, place, what):
    """Opens and locks a lock file, and checks that it is still at its path.

    Returns:
        Its descriptor, and whether it is locked.
    """
    reason = "its files change from one look to the next"
    for _ in range(100):
        file = _opened(lock, place, what)
        try:
            import fcntl  # not on Windows

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, lock):
                return file, True
        except (BlockingIOError, PermissionError):  # the latter's over SMB
            owner = _owner(file)
            os.close(file)
            raise BlockingIOError(
                f"{what} must be used by one process at a time. Received: "
                f"{place}, which is held by {owner}. Wait until that has "
                "ended, or choose another."
            ) from None
        except (ImportError, OSError) as error:
            reason = error
            break
        os.close(file)  # its owner removed it before it was locked here
    else:
        file = _opened(lock, place, what)
    warnings.warn(
        f"{what} cannot be kept to one process: {reason}. Make sure that no "
        f"other process uses {place}.",
        stacklevel=4,
    )
    return file, False


def _opened(lock, place, what):
    """Opens a lock file, unless another file has its name."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    file = os.open(lock, flags, 0o666)
    start = b""
    with contextlib.suppress(OSError):  # over SMB, what is locked is not read
        start = os.pread(file, len(_OWNER), 0)
    if _OWNER.encode().startswith(start):
        return file
    os.close(file)
    raise FileExistsError(
        f"{what} must have room for a lock file. Received: {place}, where "
        f"{lock} holds something else. Nothing was changed. Move it, or choose "
        "another."
    )


def _owner(file):
    try:
        owner = os.pread(file, 200, 0).decode(errors="replace")
    except OSError:  # over SMB, nobody else may read what is locked
        owner = ""
    return owner or "another process"


def _is_at(file, path):
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
