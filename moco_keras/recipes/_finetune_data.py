"""Labeled images to fine-tune on, to choose the best epoch by, and to test."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from moco_keras import augmentations, data
from moco_keras.data import folders
from moco_keras.system.paths import printable

_HELD_OUT = 0.1  # of each class


class Splits(NamedTuple):
    """What a classifier is trained, chosen and tested by; all have labels.

    Attributes:
        train: `data.ImageStream`.
        validation, test: the same, or None.
        class_names: a name for each class.
        notes: lines that say how the data was understood.
    """

    train: data.ImageStream
    validation: data.ImageStream | None
    test: data.ImageStream | None
    class_names: list[str]
    notes: list[str]


def read(settings, chooses):
    """Reads the images that --data names.

    Args:
        settings: `FinetuneSettings`.
        chooses: whether validation images choose the best epoch. If there is no
            split of them, a tenth of the training images is held out.
            Otherwise all are trained on, and images of the split "validation"
            test if there is no split "test".

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if they have no labels or are of one class, or --labels
            lists others.
    """
    is_folder = Path(settings.data).is_dir()
    if settings.labels and not is_folder:
        raise ValueError(
            "--labels lists files of a folder of images. Received: "
            f"--data={settings.data}, which is not a folder. For ImageNet's "
            "published parts, give --data=imagenet2012_subset/1pct."
        )
    read_splits = _of_folder if is_folder else _of_name
    splits, class_names, held_out = read_splits(settings, chooses)
    train = splits["train"]
    if not chooses:
        splits.setdefault("test", splits.pop("validation", None))
    notes = [f"To train on: {train.num_examples:,} images of {train.source}"]
    if held_out:
        count = splits["validation"].num_examples
        notes.append(
            f"To choose the best epoch by: {count:,} others, held out of them"
        )
    return Splits(
        train,
        splits.get("validation"),
        splits.get("test"),
        class_names,
        notes,
    )


def evaluation_batches(stream, image_size):
    """Batches of the centers of images with their labels, in their order.

    Args:
        stream: `data.ImageStream` of images of any sizes.
        image_size: side of the centers.

    Returns:
        A `tf.data.Dataset` of (float32 (N, S, S, 3), int64 (N,)).
    """
    evaluation = augmentations.evaluation(image_size)
    count = tf.data.experimental.assert_cardinality(stream.num_examples)
    return (
        stream.dataset.map(
            lambda x: (evaluation(x["image"]), x["label"]),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .apply(count)
        .batch(256)
    )


def _of_folder(settings, chooses):
    found = folders.find(settings.data, settings.on_bad_image)
    if settings.labels:
        folders.keep_listed(found, _listed(settings.labels))
    held_out = chooses and "validation" not in found.splits
    if held_out:
        folders.hold_out(found, _HELD_OUT)
    splits = {
        name: folders.stream(found, name, None).only_labelled()
        for name in found.splits
    }
    classes = np.unique(splits["train"].labels)
    if len(classes) < 2:
        raise ValueError(
            "--data must hold images of two classes or more, in a folder for "
            f"each class. Received: {printable(settings.data)}, with images "
            f"of {len(classes)}."
        )
    splits = {k: v for k, v in splits.items() if v.num_examples}
    return splits, splits["train"].class_names, held_out


def _of_name(settings, chooses):
    def read(split):
        return data.read_named(settings.data, split, data_dir=settings.data_dir)

    train = read("train")  # or it says that there is no such data set
    builder = data.find_builder(settings.data, settings.data_dir)
    label = builder.info.features.get("label")
    num_classes = getattr(label, "num_classes", None)
    if num_classes is None:
        raise ValueError(
            "--data must have a feature `label` of classes. Received: "
            f"--data={settings.data}, whose features are "
            f"{', '.join(builder.info.features)}."
        )
    names = [x for x in ("validation", "test") if x in builder.info.splits]
    splits = {"train": train, **{name: read(name) for name in names}}
    held_out = chooses and "validation" not in splits
    if held_out:
        kept = round(100 * (1 - _HELD_OUT))
        splits["train"] = read(f"train[:{kept}%]")
        splits["validation"] = read(f"train[{kept}%:]")
    class_names = train.class_names or [str(i) for i in range(num_classes)]
    return splits, class_names, held_out


def _listed(path):
    """The names in a file, one on each line."""
    try:
        lines = Path(path).read_text("utf-8", "surrogateescape").splitlines()
    except OSError as error:
        raise FileNotFoundError(
            "--labels must be a text file with the name of an image on each "
            f"line. Received: {printable(path)}: {error.strerror}."
        ) from error
    return [line.strip() for line in lines if line.strip()]
