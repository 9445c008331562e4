"""Images from TensorFlow Datasets and from folders.

Data that is not there is an error that says what was looked for and where;
nothing else ever stands in for it.
"""

from moco_keras import arguments
from moco_keras.data import builders, folder_streams, folders
from moco_keras.system.paths import printable


def load(
    source,
    split="train",
    *,
    data_dir=None,
    examples=None,
    image_size=None,
    on_bad_image="skip",
    channels=3,
):
    """Reads a data set of images into memory.

    Args:
        source: a folder of images, with or without a folder for each class; or,
            if no folder has this name, a name of TensorFlow Datasets, such as
            "cifar10", "name/config" or "name:1.0.0"; or "textures", which are
            drawn. `read_folder` takes folders only, `read_named` names only.
        split: the split of a TFDS data set, or a part of one such as
            "train[:90%]"; or the split of a folder, see `read_splits`.
        data_dir: where TFDS data sets are kept. By default the environment
            variable MOCO_KERAS_DATA_DIR, or TFDS's own default without one.
        examples: how many to take, from a fixed shuffle: the first of TFDS's
            own order, which was shuffled when the data set was made, or of a
            seeded shuffle of a folder. None takes all.
        image_size: side in pixels to which images are resized, as
            `augmentations.evaluation` does; needed if their sizes differ.
        on_bad_image: whether to "skip" files of a folder that are no images, or
            to end with an "error" at the first.
        channels: that images of a folder are to have: 3 for RGB, 1 for gray, or
            another number, that of the files. None means that of the files,
            where gray becomes RGB if others are in color.

    Paths may begin with `~`.

    Returns:
        An `ImageSet`.

    Raises:
        FileNotFoundError: if the data set is neither there nor downloadable.
        ValueError: if it has no such split, images of other channels, types or
            sizes than others, fewer than `examples`, or, if requested, a file
            that is not an image.
    """
    stream = read(
        source,
        split,
        data_dir=data_dir,
        examples=examples,
        on_bad_image=on_bad_image,
        channels=channels,
    )
    return stream.load(image_size=image_size)


def read(
    source,
    split="train",
    *,
    data_dir=None,
    examples=None,
    on_bad_image="skip",
    channels=3,
):
    """Opens a data set of images without holding it in memory.

    Args and errors: as `load`. All files of a folder are looked at first, to
    see which of them are images; see docs/images.md.

    Returns:
        An `ImageStream`.
    """
    if str(source) and arguments.path(source=source).is_dir():
        return read_folder(
            source,
            split,
            examples=examples,
            on_bad_image=on_bad_image,
            channels=channels,
        )
    if not isinstance(source, str):
        raise _neither(source)
    return read_named(source, split, data_dir=data_dir, examples=examples)


def read_folder(
    folder,
    split="train",
    *,
    examples=None,
    on_bad_image="skip",
    channels=3,
):
    """Opens a folder of images, even if TFDS has a data set of its name.

    Args and errors: as `load`.

    Returns:
        An `ImageStream`.
    """
    examples = _count(examples)
    found = folders.find(folder, on_bad_image)
    named = folders.SPLITS.get(str(split).lower())
    if named not in found.splits:
        raise ValueError(
            f"`split` must be one of {', '.join(found.splits)} for the folder "
            f"{printable(folder)}. Received: split={split!r}. "
            "Splits are folders called train, val, valid, validation or test, "
            "including train. If train is the only one, no other folder may be "
            "beside it."
        )
    return folder_streams.open_split(found, named, examples, channels)


def read_splits(folder, *, examples=None, on_bad_image="skip", channels=3):
    """Opens each split of a folder of images.

    A folder has splits if it holds folders called train and val, valid,
    validation or test, in whatever case, or train alone: as TFDS's
    `ImageFolder` has it. The folders in these are classes, and images outside
    of them are left out and listed. Any other folder is one split, "train", and
    the folders directly in it are classes. Images that are in no folder of a
    class have the label -1.

    Args:
        folder: its path.
        examples: how many images of "train" to take, see `load`.
        on_bad_image, channels: see `load`.

    Returns:
        A dict of `ImageStream`s: "train", and, if they are there, "validation"
        and "test". A class has the same number in all.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: as `load`.
    """
    examples = _count(examples)
    found = folders.find(folder, on_bad_image)
    return {
        split: folder_streams.open_split(
            found, split, examples if split == "train" else None, channels
        )
        for split in found.splits
    }


def read_named(name, split="train", *, data_dir=None, examples=None):
    """Opens a data set of TFDS, even if there is a folder of its name.

    Args and errors: as `load`.

    Returns:
        An `ImageStream`.
    """
    examples = _count(examples)
    builder = builders.find_builder(name, data_dir)
    if builder is None:
        raise _neither(name)
    return builders.read(builder, split, examples)


def _neither(source):
    return FileNotFoundError(
        "A data set must be a name of TensorFlow Datasets or a folder of "
        f"images that exists. Received: {printable(source)!r}, "
        "which is neither."
    )


def _count(examples):
    return None if examples is None else arguments.whole(examples=examples)
