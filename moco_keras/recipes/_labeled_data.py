"""Labeled images of a folder or of TensorFlow Datasets, by their splits."""

import numpy as np
import tensorflow as tf

from moco_keras import arguments, augmentations, data, pixel_format
from moco_keras.data import damaged, folder_streams, folders
from moco_keras.data.image_sets import UNLABELLED
from moco_keras.files import scanning
from moco_keras.recipes import _memory
from moco_keras.system.paths import printable

_HELD_OUT = 0.1
_BATCH = 256  # images to evaluate at a time


def of_folder(
    path,
    required,
    *,
    listed=None,
    on_bad_image="skip",
    pixels=pixel_format.RGB,
):
    """Opens the splits of a folder, and holds images out if it lacks some.

    Args:
        path: of the folder.
        required: names of splits. If none of them holds labeled images, a
            tenth of each class of "train" becomes "validation". Without names,
            nothing is held out.
        listed: names of the images whose labels may be used; None means all.
        on_bad_image: see `data.load`.
        pixels: what the encoder takes, a `PixelFormat`.

    Returns:
        A dict of `data.ImageStream`s in which all images have labels, with
        "train" among them, and whether images were held out.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if its images are not of two classes or more, none can be
            held out, or other splits have classes that "train" lacks.
    """
    # Each label must be that of its image: nothing may stand in for it later.
    found = folders.find(path, on_bad_image, decode=True)
    if found.skipped:
        print(scanning.summary(found.skipped))
    if listed is not None:
        folders.keep_listed(found, listed)
    labeled = {
        name
        for name, files in found.splits.items()
        if any(file.class_name is not None for file in files)
    }
    held_out = bool(required) and not labeled & set(required)
    if held_out:
        folders.hold_out(found, _HELD_OUT)
    splits = {
        name: folder_streams.open_split(
            found, name, None, pixels.channels
        ).only_labelled()
        for name in found.splits
    }
    for note in splits["train"].notes:
        print(note)
    splits["train"].check_images(pixels)
    classes = np.unique(splits["train"].labels)
    if len(classes) < 2:
        raise ValueError(
            "--data must hold images of two classes or more, in a folder for "
            f"each class. Received: {printable(path)}, with images of "
            f"{len(classes)}."
        )
    splits = {k: v for k, v in splits.items() if v.num_examples}
    if held_out and "validation" not in splits:
        raise ValueError(
            "A class of two images or more must be among those to train with, "
            "or a folder val or test beside train, so that some images can "
            f"test. Received: {printable(path)}, with one image for each class."
        )
    check_classes(splits)
    return splits, held_out


def check_classes(splits):
    """Refuses classes that cannot be learned, because "train" lacks them.

    Args:
        splits: a dict of `data.ImageStream`s.
    """
    train = splits["train"]
    known = np.unique(labels_of(train))
    for name, stream in splits.items():
        unknown = np.setdiff1d(labels_of(stream), known)
        if len(unknown):
            names = ", ".join(train.class_names[i] for i in unknown[:3])
            raise ValueError(
                "All classes must be among the images to train with. Received, "
                f"in {stream.source}: images of the split {name} that are of "
                f"{len(unknown)} other classes, such as {names}. Add images of "
                "these to train with, or take these out."
            )


def of_name(
    name, required, *, data_dir=None, examples=None, pixels=pixel_format.RGB
):
    """Opens the splits of a data set of TensorFlow Datasets.

    What is held out is the last tenth of "train", which TFDS has shuffled.

    Args:
        name: of the data set.
        required: as in `of_folder`.
        data_dir: see `data.load`.
        examples: how many images to take, by names of splits; none means all.
        pixels: as in `of_folder`.

    Returns:
        As `of_folder`; each class has a name.

    Raises:
        FileNotFoundError: if there is no such data set.
        ValueError: if its images have no labels, or the encoder does not take
            them.
    """

    def read(split):
        count = (examples or {}).get(split)
        stream = data.read_named(name, split, data_dir=data_dir, examples=count)
        if pixels.channels in (1, 3):
            stream = stream.in_channels(pixels.channels)
        return stream._replace(class_names=class_names or stream.class_names)

    def has_labels(split):
        return labels_of(read(f"{split}[:1]"))[0] != UNLABELLED

    class_names = []
    train = read("train")  # or it says that there is no such data set
    train.check_images(pixels)
    info = data.find_builder(name, data_dir).info
    label = info.features["label"] if "label" in info.features else None
    num_classes = getattr(label, "num_classes", None)
    if num_classes is None or not has_labels("train"):
        raise ValueError(
            "--data must have a feature `label` of classes. Received: "
            f"--data={name}, whose features are {', '.join(info.features)}."
        )
    class_names = train.class_names or [str(i) for i in range(num_classes)]
    splits = {
        split: read(split)
        for split in ("train", "validation", "test")
        # The labels of ImageNet's split "test" were never published.
        if split in info.splits and has_labels(split)
    }
    held_out = bool(required) and not set(required) & set(splits)
    if held_out:
        kept = round(100 * (1 - _HELD_OUT))
        splits["train"] = read(f"train[:{kept}%]")
        splits["validation"] = read(f"train[{kept}%:]")
        splits = {k: with_labels(v) for k, v in splits.items()}
        check_classes(splits)
    return splits, held_out


def labels_of(stream):
    """The labels of a stream's images, int64 (N,)."""
    if stream.labels is not None:
        return stream.labels
    labels = stream.encoded(None).map(lambda x: x["label"])
    return np.concatenate(list(labels.batch(4096).as_numpy_iterator()))


def with_labels(stream):
    """The same stream, whose labels are known."""
    return stream._replace(labels=labels_of(stream))


def load_rows(stream, rows, image_size):
    """Reads some images of a stream into memory.

    Args:
        stream: `data.ImageStream`.
        rows: their numbers in its order, int (M,), rising.
        image_size: that they get, a side or (height, width).

    Returns:
        (M, H, W, C), of the type that they have.

    Raises:
        ValueError: if memory has no room for them.
    """
    height, width = arguments.sides(image_size=image_size)
    if lack := _memory.lack_for_images(len(rows), image_size, stream):
        raise ValueError(
            "Images to train with must fit the memory that is free. Received: "
            f"{len(rows):,} of {height}x{width} pixels, which {lack}. "
            "Lower --labels_per_class, or use `finetune`, which reads images "
            "as they are needed."
        )
    wanted = np.zeros(stream.num_examples, bool)
    wanted[rows] = True

    def encoded(key):
        # Only what is wanted is decoded.
        pairs = stream.encoded(key).enumerate()
        return pairs.filter(lambda row, _: tf.gather(wanted, row)).map(
            lambda _, example: example
        )

    some = stream._replace(encoded=encoded, num_examples=len(rows))
    found = some.load(image_size=image_size).images
    if len(found) < len(rows):
        raise ValueError(
            "Images to train with must be whole. Received: "
            f"{len(rows) - len(found)} that cannot be read; warnings name "
            "them. Remove them, and start again."
        )
    return found


def evaluation_batches(stream, image_size):
    """Batches of the centers of images with their labels, in their order.

    Args:
        stream: `data.ImageStream` of images of any sizes.
        image_size: of the centers, a side or (height, width).

    Returns:
        A `tf.data.Dataset` of (float32 (N, H, W, C), int64 (N,)).
    """
    evaluation = augmentations.evaluation(image_size)
    batches = damaged.decoded(
        stream,
        stream.encoded(None).enumerate().batch(_BATCH),
        lambda _, x: (evaluation(x["image"]), x["label"]),
        _BATCH,
    )
    count = -(-stream.num_examples // _BATCH)
    return batches.apply(
        tf.data.experimental.assert_cardinality(count)
    ).prefetch(tf.data.AUTOTUNE)
