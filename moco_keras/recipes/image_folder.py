"""Pre-trains an encoder on a folder of images of your own, labelled or not.

    python -m moco_keras.recipes.image_folder --images=FOLDER

JPEG, PNG, GIF and BMP files of any sizes, in folders of any depth. What cannot
be decoded is skipped and listed. Where the images are in a folder for each
class, a kNN follows the training. It tests with some of the images that are
trained on, but without their names. Where --images holds folders train and
validation (or val, valid, test), with the classes in them, the first is trained
on, and the other tests.

The method is MoCo v2. Encoder, image size, batch, queue and epochs are chosen
to fit the images and the device where their flags are not given. They are
printed, and a resumed run keeps them.
"""

import dataclasses

import numpy as np

from moco_keras import data, image_files
from moco_keras.arguments import COUNT
from moco_keras.recipes import _pretrain, _settings


@dataclasses.dataclass(frozen=True)
class FolderSettings(_settings.Settings):
    """Those of all programs, and of a folder."""

    images: str | None = _settings.path(None, "the folder of images")
    image_size: int | None = _settings.setting(
        None, "side of the views, in pixels", COUNT
    )
    on_bad_image: str = _settings.setting(
        "skip",
        "what to do with files that cannot be decoded: skip and list them, or "
        "end with an error at the first",
        choices=("skip", "error"),
    )


_TESTS = 1000  # at most, where nobody says how many
_OF_BANK = 4  # images, for each to test with
_NAMED = 8  # classes, in what is printed


def read(settings):
    """The folder as a stream, and some of its images to evaluate with."""
    if not settings.images:
        raise ValueError("--images must be given: the folder of your images.")
    splits = data.read_splits(
        settings.images,
        examples=settings.train_examples,
        on_bad_image=settings.on_bad_image,
    )
    train = splits["train"]
    bank = train.only_labelled()
    if len(np.unique(bank.labels)) < 2:  # there is no kNN, only pictures
        bank = train
    name, tests = _tests(splits)
    most = settings.test_examples or _TESTS
    size = settings.image_size
    if tests is None:
        tests, bank = _held_out(settings, bank)
    else:
        if (settings.test_examples or 0) > tests.num_examples:
            raise ValueError(
                f"--test_examples must be at most the {tests.num_examples} "
                f"labelled images of the split {name}. Received: "
                f"--test_examples={most}."
            )
        tests = tests.load(most, image_size=size)
        bank = bank.load(_OF_BANK * most, image_size=size)
    notes = [
        _about_classes(settings.images, train),
        _about_tests(splits, name),
    ]
    return _pretrain.Images(train, bank, tests, notes)


def _tests(splits):
    """The split to test with, its name and its images, or None and None."""
    for name in ("validation", "test"):
        if name in splits and splits["train"].only_labelled().num_examples:
            tests = splits[name].only_labelled()
            if tests.num_examples:
                return name, tests
    return None, None


def _held_out(settings, stream):
    """Some images to test with, and others for the bank, of a fixed shuffle."""
    available = stream.num_examples
    tests = settings.test_examples or min(_TESTS, -(-available // 5))
    if tests >= available:
        given = f", --test_examples={tests}" if settings.test_examples else ""
        raise ValueError(
            "A folder must hold images to test with, and at least one other to "
            f"compare them with. Received: {available} in {settings.images}"
            f"{given}. Add images, or give more --train_examples or fewer "
            "--test_examples."
        )
    some = stream.load(
        min((1 + _OF_BANK) * tests, available), image_size=settings.image_size
    )
    return (
        some._replace(images=some.images[part], labels=some.labels[part])
        for part in (slice(tests), slice(tests, None))
    )


def _about_classes(folder, train):
    """Says which classes the images have."""
    counts = np.bincount(1 + train.labels, minlength=1)
    unlabelled, counts = counts[0], counts[1:]
    found = [
        f"{name} {count:,}"
        for name, count in zip(train.class_names, counts, strict=False)
        if count
    ]
    folder = image_files.printable(folder)
    if not found:
        return f"Classes: none, as no images are in folders within {folder}"
    more = len(found) - _NAMED
    words = ", ".join(found[:_NAMED]) + (f", and {more} more" * (more > 0))
    line = f"Classes, the folders within {folder}: {words}"
    if unlabelled:
        line += f"; {unlabelled:,} images without one are trained on, too"
    return line


def _about_tests(splits, name):
    """Says which images test the encoder, and what is not used."""
    if name is None:
        line = "Tests: some of the images, also trained on, without their names"
    else:
        line = f"Tests: images of the split {name}, which are not trained on"
    unused = [
        f"{split} ({stream.num_examples:,})"
        for split, stream in splits.items()
        if split not in ("train", name)
    ]
    return line + (f"; not used: {', '.join(unused)}" if unused else "")


_DEFAULTS = FolderSettings(
    **dict.fromkeys(_settings.FITTED),
    head="mlp",
    augmentation="moco_v2",
    min_area=0.2,
    temperature=0.2,
    l2=1e-4,
)

if __name__ == "__main__":
    _pretrain.run("image_folder", read, _DEFAULTS)
