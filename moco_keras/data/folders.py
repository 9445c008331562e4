"""Folders of images: their splits and classes."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moco_keras import arguments
from moco_keras.data.damaged import Damaged
from moco_keras.files import scanning, walking
from moco_keras.files.header import Header
from moco_keras.system.paths import printable

# What folders of splits are called, in lower case, and their splits.
SPLITS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_BESIDE = "In none of the folders of splits, beside it"


class _File(NamedTuple):
    path: str
    digest: bytes  # see `scanning.Scan`
    header: Header
    class_name: str | None


class Folder(NamedTuple):
    """The images of a folder, by the names of its splits."""

    path: Path
    splits: dict[str, list[_File]]
    class_names: list[str]
    skipped: list[tuple[Path, str]]
    damaged: Damaged


def find(folder, on_bad_image, decode=False):
    """Finds the images of a folder, by their splits; see `scanning.scan`."""
    where = existing(folder)
    return arrange(where, scanning.scan(where, on_bad_image, decode))


def existing(folder):
    """The path of a folder that exists.

    Raises:
        FileNotFoundError: if it does not.
    """
    where = arguments.path(folder=folder) if str(folder) else None
    if where is None or not where.is_dir():
        raise FileNotFoundError(
            "A folder of images must be a folder that exists. Received: "
            f"{printable(folder)!r}, looked for in {Path.cwd()}."
        )
    return where


def arrange(where, scan):
    """Finds the splits and classes of images by their names.

    Args:
        where: `Path` of their folder.
        scan: `scanning.Scan`.

    Returns:
        A `Folder`.
    """
    files, digests, headers, skipped = scan
    names = [
        name.split(os.sep)  # noqa: PTH206 (a `Path` for each is slow)
        for name in walking.names_in(where, files)
    ]
    split_of = _splits_of({name[0] for name in names if len(name) > 1})
    splits = {}
    for path, digest, header, name in zip(
        files, digests, headers, names, strict=True
    ):
        split = "train"
        if split_of:
            split = split_of.get(name[0]) if len(name) > 1 else None
            if split is None:
                skipped.append((Path(path), _reason_left_out(name)))
                continue
            name = name[1:]
        class_name = name[0] if len(name) > 1 else None
        splits.setdefault(split, []).append(
            _File(path, digest, header, class_name)
        )
    classes = {f.class_name for files in splits.values() for f in files}
    class_names = sorted(classes - {None}, key=walking.key)
    return Folder(where, splits, class_names, skipped, Damaged())


def keep_listed(folder, names):
    """Keeps only some images of "train".

    Args:
        folder: a `Folder`, which changes.
        names: of the images: their paths within the folder, or within the
            folder of the split, or their names alone.

    Raises:
        ValueError: if one of them is not there, or names several.
    """
    wanted = set(names)
    kept, found = [], set()
    files = folder.splits["train"]
    within = walking.names_in(folder.path, [file.path for file in files])
    for file, name in zip(files, within, strict=True):
        parts = Path(name).parts
        known_as = {"/".join(parts[i:]) for i in range(len(parts))} & wanted
        if known_as & found:
            raise ValueError(
                "A name that is listed must be that of one image. Received: "
                f"{printable(min(known_as & found))}, which several folders "
                "have. List it with its folder."
            )
        if known_as:
            kept.append(file)
            found |= known_as
    missing = sorted(wanted - found)
    if missing:
        raise ValueError(
            "Images that are listed must be among those to train on. Received: "
            f"{len(missing)} that are not in {printable(folder.path)}, such "
            f"as {printable(missing[0])}."
        )
    folder.splits["train"] = kept


def hold_out(folder, fraction):
    """Moves a part of each class of "train" to the split "validation".

    Args:
        folder: a `Folder`, which changes.
        fraction: the part, at least one image; a class of one image keeps it.
    """
    of_class = {}
    for file in folder.splits["train"]:
        of_class.setdefault(file.class_name, []).append(file)
    held_out = set()
    for name, files in of_class.items():
        if name is not None and len(files) > 1:
            count = max(1, round(fraction * len(files)))
            order = np.random.default_rng(0).permutation(len(files))
            held_out.update(files[i] for i in order[:count])
    for split, is_held_out in (("validation", True), ("train", False)):
        folder.splits[split] = [
            file
            for file in folder.splits["train"]
            if (file in held_out) == is_held_out
        ]


def _splits_of(folders):
    """Splits by names of folders; an empty dict if they are not splits."""
    splits = {name: SPLITS.get(name.lower()) for name in folders}
    found = set(splits.values())
    # With train and one other name of a split, others may be beside them.
    is_split = "train" in found and (None not in found or len(found) > 2)
    return {k: v for k, v in splits.items() if v} if is_split else {}


def _reason_left_out(name):
    """Why a file that is in no folder of a split is left out."""
    if len(name) == 1:
        return _BESIDE
    folder = printable(name[0])
    return (
        f"In {folder}, which is not a split; images directly in train are used"
    )
