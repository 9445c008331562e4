"""What a program trains on and evaluates with, and how it is read."""

from collections.abc import Sequence
from typing import NamedTuple

from moco_keras import data
from moco_keras.files import scanning
from moco_keras.recipes import _pixels

TESTS = 1000  # at most, by default
OF_BANK = 4  # images to compare with, for each to test with


class Images(NamedTuple):
    """What a program trains on and evaluates with.

    Attributes:
        train: `data.ImageSet` or `data.ImageStream`, to train on.
        bank, test: `data.ImageSet`s; if all have labels, kNN predicts those of
            the test images by their nearest in the bank.
        notes: lines that say how the data was understood.
    """

    train: data.ImageSet | data.ImageStream
    bank: data.ImageSet
    test: data.ImageSet
    notes: Sequence[str] = ()


def by_name(name):
    """A function that reads a data set of TFDS, for `_pretrain.run`."""

    def read(settings):
        bank, test = (
            in_channels(
                data.read_named(
                    name, split, data_dir=settings.data_dir, examples=examples
                ),
                settings.channels,
            ).load()
            for split, examples in (
                ("train", settings.train_examples),
                ("test", settings.test_examples),
            )
        )
        return Images(bank, bank, test)

    return read


def in_channels(stream, channels):
    """The images of a stream in the channels of the settings.

    Args:
        stream: `data.ImageStream`.
        channels: 1, 3, or None for what they have.

    Raises:
        ValueError: if images of so many channels cannot be converted.
    """
    return stream if channels is None else stream.in_channels(channels)


def held_out(settings, stream, where):
    """Some images to test with, and others for the bank, of a fixed shuffle.

    Args:
        settings: `Settings`, with an image size.
        stream: `data.ImageStream`.
        where: the images are, for messages.

    Returns:
        Two `data.ImageSet`s.

    Raises:
        ValueError: if there are not enough.
    """
    available = stream.num_examples
    tests = settings.test_examples or min(TESTS, -(-available // 5))
    if tests >= available:
        given, remedy = "", "Add images"
        if settings.train_examples:
            given += f", --train_examples={settings.train_examples}"
            remedy += ", or give more --train_examples"
        if settings.test_examples:
            given += f", --test_examples={tests}"
            remedy += ", or give fewer --test_examples"
        raise ValueError(
            "There must be images to test with, and at least one other to "
            f"compare them with. Received: {counted(available)} in "
            f"{where}{given}. {remedy}."
        )
    some = stream.load(
        min((1 + OF_BANK) * tests, available),
        image_size=_pixels.parse_size(settings.image_size),
    )
    return (
        some._replace(images=some.images[part], labels=some.labels[part])
        for part in (slice(tests), slice(tests, None))
    )


def counted(count):
    """Such as "1 image" and "2,000 images"."""
    return f"{count:,} image" if count == 1 else f"{count:,} images"


def print_notes(images):
    """Prints what was skipped, and how the data was understood."""
    if images.train.skipped:
        print(scanning.summary(images.train.skipped))
    for note in images.notes:
        print(note)
