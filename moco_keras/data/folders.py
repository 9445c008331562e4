"""Folders of images: their splits and classes."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from moco_keras import arguments, random
from moco_keras.data import decoding, image_files
from moco_keras.data.image_sets import UNLABELLED, ImageStream, check_examples
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
    path: Path
    digest: bytes  # SHA-256 of its contents
    class_name: str | None


class Folder(NamedTuple):
    """The images of a folder, by the names of its splits."""

    path: Path
    splits: dict[str, list[_File]]
    class_names: list[str]
    skipped: list[tuple[Path, str]]


def find(folder, on_bad_image):
    """Finds the images of a folder, by their splits."""
    where = existing(folder)
    return arrange(where, image_files.scan(where, on_bad_image))


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
        scan: `image_files.Scan`.

    Returns:
        A `Folder`.
    """
    files, digests, skipped = scan
    names = [path.relative_to(where).parts for path in files]
    split_of = _splits_of({name[0] for name in names if len(name) > 1})
    splits = {}
    for path, digest, name in zip(files, digests, names, strict=True):
        split = "train"
        if split_of:
            split = split_of.get(name[0]) if len(name) > 1 else None
            if split is None:
                skipped.append((path, _reason_left_out(name)))
                continue
            name = name[1:]
        class_name = name[0] if len(name) > 1 else None
        splits.setdefault(split, []).append(_File(path, digest, class_name))
    classes = {f.class_name for files in splits.values() for f in files}
    class_names = sorted(classes - {None}, key=image_files.key)
    return Folder(where, splits, class_names, skipped)


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
    for file in folder.splits["train"]:
        parts = file.path.relative_to(folder.path).parts
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


def check_channels(channels):
    """Refuses channels that files are not read in."""
    if channels not in (1, 3):
        raise ValueError(
            "`channels` must be 1 for gray or 3 for RGB, in which files are "
            f"read. Received: channels={channels!r}."
        )


def stream(folder, split, examples, channels=3):
    """Opens a split of a `Folder`.

    Args:
        folder: a `Folder`.
        split: its name.
        examples: how many images to take, of a fixed shuffle; None means all.
        channels: 3 for RGB, or 1 for gray.

    Returns:
        An `ImageStream`.
    """
    files = folder.splits[split]
    check_examples(examples, len(files), printable(folder.path))
    if examples is not None:
        order = np.random.default_rng(0).permutation(len(files))[:examples]
        files = [files[i] for i in sorted(order)]
    numbers = {name: i for i, name in enumerate(folder.class_names)}
    labels = [numbers.get(file.class_name, UNLABELLED) for file in files]
    labels = tf.constant(labels, "int64")
    paths = tf.constant([os.fsencode(file.path) for file in files])

    def in_order(key):
        rows = tf.range(len(files), dtype="int64")
        if key is not None:
            rows = random.permutation(key, len(files))
        return tf.data.Dataset.from_tensor_slices(
            {"path": tf.gather(paths, rows), "label": tf.gather(labels, rows)}
        )

    def decode(example):
        contents = tf.io.read_file(example["path"])
        image = decoding.decode(contents, channels)
        return {"image": image, "label": example["label"]}

    digest = hashlib.sha256()
    for file in files:
        name = os.fsencode(file.path.relative_to(folder.path))
        digest.update(name + b"\0" + file.digest)
    name = printable(folder.path.resolve().name)
    return ImageStream(
        in_order,
        decode,
        len(files),
        [printable(name) for name in folder.class_names],
        f"{name} {digest.hexdigest()[:12]}",
        folder.skipped,
        labels.numpy(),
        1 - len({file.digest for file in files}) / max(1, len(files)),
    )
