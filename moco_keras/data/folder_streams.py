"""The images of folders, as streams in which all are alike."""

import hashlib
import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from moco_keras import random
from moco_keras.data.image_sets import UNLABELLED, ImageStream, check_examples
from moco_keras.files import decoding, reading, walking
from moco_keras.files.header import NotAnImageError
from moco_keras.system.paths import printable


class _Pixels(NamedTuple):
    """How the images of a folder are read: all alike."""

    channels: int
    dtype: str
    notes: list[str]  # what is converted


def _pixels(folder, channels):
    """How to read the images of a `Folder`, see `open_split`."""
    files = [file for some in folder.splits.values() for file in some]
    groups = _grouped(files, lambda header: header.channels)
    target = max(groups) if channels is None else channels
    found, notes = _counted(groups, "channel"), []
    if not all(_can_become(there, target) for there in groups):
        raise ValueError(
            "The images of a folder must have one number of channels, or must "
            "be read as RGB or in gray: images of 1, 3 and 4 channels with "
            "channels=3, of 1 and 3 with channels=1; with channels=None in "
            "the channels that they all have. Received: "
            f"channels={channels}, and in {printable(folder.path)}: {found}."
        )
    if len(groups) > 1:
        what = {1: "in gray", 3: "as RGB"}[target]
        if 4 in groups:
            what += ", those of four channels without the last"
        notes.append(f"Channels: {found}. All are read {what}.")
    types = _grouped(files, lambda header: header.dtype)
    dtype, *others = sorted(types, reverse=True)  # uint8, uint16, int16, ...
    if others:
        found = _counted(types)
        # Among many of 16 bits, a picture of 8 would cut all of them.
        few = len(types.get("uint16", ())) < len(types.get("uint8", ()))
        if types.keys() != {"uint8", "uint16"} or not few:
            raise ValueError(
                "The images of a folder must have one type, or most of them 8 "
                "bits and the others 16. Received, in "
                f"{printable(folder.path)}: {found}. Leave some out, or "
                "convert them."
            )
        notes.append(
            f"Types: {found}. Of 16 bits the upper 8 are read, as others have "
            "no more."
        )
    for what, some, then in (
        (
            "Several pages",
            [file for file in files if file.header.pages],
            "The first is read of each",
        ),
        (
            "Transparency",
            [file for file in files if file.header.alpha],
            "It is ignored",
        ),
    ):
        if some:
            notes.append(f"{what}: {_some(some)}. {then}.")
    return _Pixels(target, dtype, notes)


def _can_become(channels, target):
    """Whether `reading.convert` brings channels to others."""
    return channels == target or (channels, target) in ((1, 3), (3, 1), (4, 3))


def _grouped(files, describe):
    """Lists of the files by what their headers say."""
    groups = {}
    for file in files:
        groups.setdefault(describe(file.header), []).append(file)
    return groups


def _some(files, of=""):
    """How many there are, and the name of the first."""
    return f"{len(files):,}{of}, such as {printable(Path(files[0].path).name)}"


def _counted(groups, unit=None):
    """Such as "20 of 1 channel, such as a.png; 1,180 of 3 channels, ..."."""

    def named(value):
        return f"{value} {unit}{'s' * (value != 1)}" if unit else value

    return "; ".join(
        _some(files, f" of {named(value)}")
        for value, files in sorted(groups.items())
    )


def open_split(folder, split, examples, channels):
    """Opens a split of a `Folder`.

    Args:
        folder: a `Folder`.
        split: its name.
        examples: how many images to take, of a fixed shuffle; None means all.
        channels: see `sources.load`.

    Returns:
        An `ImageStream`.

    Raises:
        ValueError: if the images cannot have these channels, or are of several
            types, other than of 8 and 16 bits.
    """
    channels, dtype, notes = _pixels(folder, channels)
    files = folder.splits[split]
    check_examples(examples, len(files), printable(folder.path))
    if examples is not None:
        order = np.random.default_rng(0).permutation(len(files))[:examples]
        files = [files[i] for i in sorted(order)]
    numbers = {name: i for i, name in enumerate(folder.class_names)}
    labels = [numbers.get(file.class_name, UNLABELLED) for file in files]
    columns = {
        "path": tf.constant([os.fsencode(file.path) for file in files]),
        "label": tf.constant(labels, "int64"),
    }
    orientation = np.array([file.header.orientation for file in files])
    if (orientation > 1).any():
        columns["orientation"] = tf.constant(orientation, "int32")
    readers = np.array([file.header.reader for file in files])
    by_tensorflow = readers == "tensorflow"
    if by_tensorflow.any() and not by_tensorflow.all():
        columns["by_tensorflow"] = tf.constant(by_tensorflow)

    def in_order(key):
        rows = tf.range(len(files), dtype="int64")
        if key is not None:
            rows = random.permutation(key, len(files))
        return tf.data.Dataset.from_tensor_slices(
            {name: tf.gather(column, rows) for name, column in columns.items()}
        )

    def read_in_python(contents):
        # An error here would print its traceback, for every damaged image.
        try:
            found = reading.read(io.BytesIO(contents))
            return reading.convert(found, channels, dtype), b""
        except NotAnImageError as error:
            reason = str(error) or "It cannot be read"
            return np.zeros((0, 0, channels), dtype), reason.encode()

    def decode(example):
        contents = tf.io.read_file(example["path"])

        def in_python():
            image, reason = tf.numpy_function(
                read_in_python, [contents], (dtype, "string")
            )
            image.set_shape((None, None, channels))
            whole = tf.debugging.Assert(tf.equal(reason, b""), [reason])
            with tf.control_dependencies([whole]):
                return tf.identity(image)

        def in_graph():
            image = decoding.decode_upright(contents, channels, dtype)
            if "orientation" in example:
                image = decoding.oriented(image, example["orientation"])
            return image

        if "by_tensorflow" in example:
            image = tf.cond(example["by_tensorflow"], in_graph, in_python)
        else:
            image = in_graph() if by_tensorflow.all() else in_python()
        return {"image": image, "label": example["label"]}

    digest = hashlib.sha256()
    names = walking.names_in(folder.path, [file.path for file in files])
    for file, name in zip(files, names, strict=True):
        digest.update(os.fsencode(name) + b"\0" + file.digest)
    name = printable(folder.path.resolve().name)
    return ImageStream(
        in_order,
        decode,
        len(files),
        [printable(name) for name in folder.class_names],
        f"{name} {digest.hexdigest()[:12]}",
        folder.skipped,
        np.array(labels, "int64"),
        1 - len({file.digest for file in files}) / max(1, len(files)),
        notes,
        folder.damaged,
    )
