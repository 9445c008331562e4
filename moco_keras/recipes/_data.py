"""What a program trains on and evaluates with, and how it is read."""

from collections.abc import Sequence
from typing import NamedTuple

from moco_keras import data
from moco_keras.data import image_files


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
            data.read_named(
                name, split, data_dir=settings.data_dir, examples=examples
            ).load()
            for split, examples in (
                ("train", settings.train_examples),
                ("test", settings.test_examples),
            )
        )
        return Images(bank, bank, test)

    return read


def print_notes(images):
    """Prints what was skipped, and how the data was understood."""
    if images.train.skipped:
        print(image_files.summary(images.train.skipped))
    for note in images.notes:
        print(note)
