"""The files of a folder, each of which is taken once."""

import heapq
import os
from pathlib import Path
from typing import NamedTuple

from moco_keras import arguments

_AGAIN = "A link to what has another name there"
_RUN = "The folder of a run"


class Walk(NamedTuple):
    """The files of a folder and of the folders in it.

    Attributes:
        files: their paths as texts, in the order of `key`; `Path`s of a million
            files take twice the memory.
        unread: (path, reason) of each folder that could not be looked into.
        left_out: (path, reason) of each link to what has another name there, of
            each folder that was reached once more by such a link, and of each
            folder of a run, which holds pictures of its own.
    """

    files: list[str]
    unread: list[tuple[Path, str]]
    left_out: list[tuple[Path, str]]


def key(path):
    """Sorts paths folder by folder, alike in every locale and file system."""
    return os.fsencode(path).replace(os.fsencode(os.sep), b"\0")


def names_in(folder, paths):
    """Names of files within a folder, texts.

    Args:
        folder: a `Path`.
        paths: those of files that `walk` found in it.
    """
    start = len(_before_names(folder))
    return [path[start:] for path in paths]


def _before_names(folder):
    """What the paths of files in a folder begin with."""
    start = os.fspath(folder)
    return "" if start == "." else start.rstrip(os.sep) + os.sep


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
        start = _before_names(place)
        for entry in shown:
            if not entry.is_symlink():
                if entry.is_dir():
                    places.append(Path(entry))
                else:
                    files.append(start + entry.name)
            elif _is_folder(entry):
                heapq.heappush(folder_links, (key(entry), Path(entry)))
            else:
                file_links.append(Path(entry))
    taken = set()
    if file_links:
        taken = {real[path.parent] / path.name for path in map(Path, files)}
    for path in sorted(file_links, key=key):
        target = _target(path)
        if target in taken:
            left_out.append((path, _AGAIN))
        else:
            taken.add(target)
            files.append(os.fspath(path))
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
