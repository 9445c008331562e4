"""Pre-trains an encoder on a folder of images of your own, labelled or not.

    python -m moco_keras.recipes.image_folder --images=FOLDER

JPEG, PNG, GIF, BMP, WebP, TIFF and .npy files of any sizes, in folders of any
depth, see docs/images.md. What is no image is skipped and listed. Where the
images are in a folder for each class, a kNN follows the training. It tests with
some of the images that are trained on, but without their names. Where --images
holds folders train and validation (or val, valid, test), with the classes in
them, the first is trained on, and the other tests.

The method is MoCo v2. Encoder, image size, batch, queue and epochs are chosen
to fit the images and the device where their flags are not given. They are
printed, and a resumed run keeps them.
"""

import dataclasses

import numpy as np

from moco_keras import data
from moco_keras.recipes import _data, _memory, _pixels, _pretrain, _settings


@dataclasses.dataclass(frozen=True)
class FolderSettings(_settings.Settings):
    """Those of all programs, and of a folder."""

    images: str | None = _settings.path(None, "the folder of images")
    labelled: str | None = _settings.path(
        None,
        "a folder of labeled images, with a folder for each class, to evaluate "
        "with instead of those of --images",
    )
    image_size: str | int | None = _settings.image_size()
    on_bad_image: str = _settings.on_bad_image()


_NAMED = 8  # classes, in what is printed


def read(settings):
    """The folder as a stream, and some of its images to evaluate with."""
    if not settings.images:
        raise ValueError("--images must be given: the folder of your images.")
    splits = data.read_splits(
        settings.images,
        examples=settings.train_examples,
        on_bad_image=settings.on_bad_image,
        channels=settings.channels,
    )
    train = bank = splits["train"]
    if settings.labelled:
        splits = data.read_splits(
            settings.labelled,
            on_bad_image=settings.on_bad_image,
            channels=train.channels,
        )
        bank = splits["train"].only_labelled()
        if bank.image_dtype != train.image_dtype:
            raise ValueError(
                "--labelled must hold images of the type of those of --images. "
                f"Received: {bank.image_dtype} in {settings.labelled}, and "
                f"{train.image_dtype} in {settings.images}."
            )
        if len(np.unique(bank.labels)) < 2:
            raise ValueError(
                "--labelled must hold images of two classes or more, in a "
                f"folder for each class. Received: {settings.labelled}, with "
                f"images of {len(np.unique(bank.labels))}."
            )
    elif len(np.unique(train.only_labelled().labels)) > 1:
        bank = train.only_labelled()
    # Otherwise there is no kNN, only pictures.
    if settings.labelled:
        about_classes = [*bank.notes, *_about_classes(bank, "--labelled")]
    else:
        about_classes = _about_classes(train, "the training images")
    name, tests = _tests(splits, bank)
    most = settings.test_examples or _data.TESTS
    size = _pixels.parse_size(settings.image_size)
    _check_room(bank, min(most * (1 + _data.OF_BANK), bank.num_examples), size)
    if tests is None:
        tests, bank = _data.held_out(settings, bank, settings.images)
    else:
        if (settings.test_examples or 0) > tests.num_examples:
            raise ValueError(
                f"--test_examples must be at most the {tests.num_examples} "
                f"labelled images of the split {name}. Received: "
                f"--test_examples={most}."
            )
        tests = tests.load(most, image_size=size)
        bank = bank.load(_data.OF_BANK * most, image_size=size)
    tests, lost = _without_others(tests, bank)
    notes = [
        *train.notes,
        *about_classes,
        _about_tests(splits, name, settings.labelled),
        *lost,
    ]
    return _data.Images(train, bank, tests, notes)


def _check_room(bank, count, size):
    """Refuses images to evaluate with that memory has no room for."""
    if lack := _memory.lack_for_images(count, size, bank):
        height, width = size
        raise ValueError(
            "The images to evaluate with must fit the memory that is free. "
            f"Received: --image_size={height}x{width} and "
            f"{_data.counted(count)}, which {lack}. Lower --image_size or "
            "--test_examples."
        )


def _tests(splits, bank):
    """The split to test with, its name and its images, or None and None."""
    for name in ("validation", "test"):
        if name in splits:
            tests = splits[name].only_labelled()
            if np.isin(tests.labels, bank.labels).any():
                return name, tests
    return None, None


def _without_others(tests, bank):
    """Tests of the bank's classes alone, and lines on those left out.

    No image of another class has a neighbour of its own: kNN would only be
    lower. Where there is no kNN, or nothing would be left, all stay.
    """
    known = np.isin(tests.labels, bank.labels)
    no_knn = not bank.labelled or len(np.unique(bank.labels)) < 2
    if no_knn or known.all() or not known.any():
        return tests, []
    names = [tests.class_names[i] for i in np.unique(tests.labels[~known])]
    line = (
        f"Tests left out: {_data.counted((~known).sum())} of classes that none "
        f"of the images to compare with has: {_some(names)}"
    )
    kept = tests._replace(
        images=tests.images[known], labels=tests.labels[known]
    )
    return kept, [line]


def _about_classes(train, whose):
    """Lines that say which classes the images have."""
    counts = np.bincount(1 + train.labels, minlength=1)
    unlabelled, counts = counts[0], counts[1:]
    found = [
        f"{name} {count:,}"
        for name, count in zip(train.class_names, counts, strict=False)
        if count
    ]
    if not found:
        return ["Classes: none, as no images are in a folder for each class"]
    line = f"Classes, the folders of {whose}: {_some(found)}"
    if unlabelled:
        line += (
            f"; also trained on, without a class: {_data.counted(unlabelled)}"
        )
    odd = [name for name in train.class_names if name.lower() in data.SPLITS]
    if not odd:
        return [line]
    return [
        line,
        f"Note: {_some(odd)} is taken for a class. To have splits, --images "
        "must hold a folder train, with a folder for each class in it, and one "
        "called val or test.",
    ]


def _some(words):
    """The first words of a list, and how many more there are."""
    more = len(words) - _NAMED
    return ", ".join(words[:_NAMED]) + (f", and {more} more" * (more > 0))


def _about_tests(splits, name, labelled):
    """Says which images test the encoder, and what is not used."""
    if labelled:
        line = f"Tests: images of --labelled={labelled}"
    elif name is None:
        line = "Tests: some of the images, also trained on, without their names"
    else:
        line = f"Tests: images of the split {name}, which are not trained on"
    unused = [
        f"{split} ({stream.num_examples:,})"
        for split, stream in splits.items()
        if split not in ("train", name)
    ]
    return line + (f"; not used: {', '.join(unused)}" if unused else "")


DEFAULTS = FolderSettings(
    **dict.fromkeys(_settings.FITTED),
    head="mlp",
    augmentation=None,
    min_area=0.2,
    temperature=0.2,
    l2=1e-4,
)

if __name__ == "__main__":
    _pretrain.run("image_folder", read, DEFAULTS)
