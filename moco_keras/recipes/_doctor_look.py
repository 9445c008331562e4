"""What the doctor sees of a data set: each image, or a random part of them."""

import contextlib
import io
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from moco_keras import data
from moco_keras.data import folder_streams, folders, image_sets
from moco_keras.evaluation import survey
from moco_keras.files import scanning, walking
from moco_keras.system.paths import printable

_NAMED = "cifar10", "textures"  # data sets with a program of their own
_MOST = 30_000  # images
_SECONDS = 20


class Found(NamedTuple):
    """What was found in a data set.

    Attributes:
        recipe: the program that trains on them.
        name: of the folder, or of the data set.
        num_images: to train on; of a folder, an estimate unless all were looked
            at.
        stream: `data.ImageStream` of the images to train on that were looked
            at.
        names, looks, labels: of each of these, its name, its `survey.Look`, and
            its label, -1 without a class.
        folder, files: the path of a folder; of these images; and of those of
            its other splits. None of a data set.
        seconds_of_image: how long a look took.
        data_dir: of a data set, where TFDS keeps it.
    """

    recipe: str
    name: str
    num_images: int
    stream: data.ImageStream
    names: list[str]
    looks: list[survey.Look]
    labels: np.ndarray
    seconds_of_image: float
    folder: Path | None = None
    files: tuple[list[Path], list[Path]] | None = None
    data_dir: str | None = None

    @property
    def whole(self):
        """Whether all images were looked at."""
        return len(self.looks) == self.num_images


def at(where, data_dir=None, seconds=_SECONDS):
    """Looks at images, for so many seconds at most.

    Args:
        where: a folder, or the name of a data set with a program of its own.
        data_dir: where TFDS keeps its data.
        seconds: after which no other image is looked at.

    Returns:
        A `Found`.

    Raises:
        FileNotFoundError: if there are no such images.
        ValueError: if there is no image.
    """
    if where in _NAMED and not Path(where).is_dir():
        return _of_data_set(where, data_dir, seconds)
    return _of_folder(where, seconds)


def _of_folder(where, seconds):
    where = folders.existing(where)
    walk = walking.walk(where)
    order = np.random.default_rng(0).permutation(len(walk.files))[:_MOST]
    looks, skipped = {}, [*walk.unread, *walk.left_out]
    start = time.monotonic()
    paths = [walk.files[i] for i in order]
    seen = scanning.examined(paths, survey.look, None)
    count = 0
    with contextlib.closing(seen):
        for path, look, reason in seen:
            count += 1
            if reason is None:
                looks[path] = look
            else:
                skipped.append((Path(path), reason))
            took = time.monotonic() - start
            if took > seconds:
                break
    if not looks:
        raise scanning.no_image(where, skipped)
    folder = folders.arrange(where, _scan(walk.files, looks, skipped))
    train = folder.splits.get("train", [])
    seen = [file for file in train if file.path in looks]
    if not seen:
        raise ValueError(
            "The doctor must see images to train on. Received: "
            f"{printable(where)}, in which none of {len(looks):,} images that "
            "it looked at is one. Is its folder train empty?"
        )
    others = [
        file.path
        for split, files in folder.splits.items()
        for file in files
        if split != "train" and file.path in looks
    ]
    num_images = len(train)
    if count < len(walk.files):  # some of the others are no images
        num_images = round(num_images * len(looks) / count)
    # The others were not looked at.
    for split, files in folder.splits.items():
        folder.splits[split] = [file for file in files if file.path in looks]
    stream = folder_streams.open_split(folder, "train", None, None)
    paths = [file.path for file in seen]
    return Found(
        recipe="image_folder",
        name=printable(where.resolve().name),
        num_images=max(num_images, len(seen)),
        stream=stream,
        names=[printable(name) for name in walking.names_in(where, paths)],
        looks=[looks[path] for path in paths],
        labels=stream.labels,
        seconds_of_image=took / count,
        folder=where,
        files=(paths, others),
    )


def _scan(files, looks, skipped):
    """What a whole scan might find, by the names of what was not looked at."""
    kinds = {_ending(path) for path in looks}
    no_images = {str(path) for path, _ in skipped}
    paths = [
        path
        for path in files
        if path in looks or (path not in no_images and _ending(path) in kinds)
    ]
    seen = [looks.get(path) for path in paths]
    return scanning.Scan(
        paths,
        [look.digest if look else b"" for look in seen],
        [look.header if look else None for look in seen],
        skipped,
    )


def _ending(path):
    return Path(path).suffix.lower()


def _of_data_set(name, data_dir, seconds):
    stream = data.read_named(name, "train", data_dir=data_dir)
    looks, labels = [], []
    start = time.monotonic()
    for example in stream.encoded(tf.zeros(2, "int64")).take(_MOST):
        looks.append(survey.look(io.BytesIO(example["image"].numpy())))
        labels.append(int(example.get("label", image_sets.UNLABELLED)))
        took = time.monotonic() - start
        if took > seconds:
            break
    return Found(
        recipe=name,
        name=name,
        num_images=stream.num_examples,
        stream=stream,
        names=[f"image {i} of the shuffle" for i in range(len(looks))],
        looks=looks,
        labels=np.array(labels),
        seconds_of_image=took / len(looks),
        data_dir=data_dir,
    )
