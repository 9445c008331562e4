"""Labeled images to fine-tune on, to choose the best epoch by, and to test."""

from pathlib import Path
from typing import NamedTuple

from moco_keras import data, pixel_format
from moco_keras.recipes import _labeled_data
from moco_keras.system.paths import printable


class Splits(NamedTuple):
    """What a classifier is trained, chosen and tested by; all have labels.

    Attributes:
        train: `data.ImageStream`.
        validation, test: the same, or None.
        notes: lines that say how the data was understood.
    """

    train: data.ImageStream
    validation: data.ImageStream | None
    test: data.ImageStream | None
    notes: list[str]

    @property
    def class_names(self):
        """A name for each class."""
        return self.train.class_names


def read(settings, chooses, pixels=pixel_format.RGB):
    """Reads the images that --data names.

    Args:
        settings: `FinetuneSettings`.
        chooses: whether validation images choose the best epoch. If there is no
            split of them, a tenth of the training images is held out.
            Otherwise all are trained on, and images of the split "validation"
            test if there is no split "test".
        pixels: what the encoder takes, a `PixelFormat`.

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
    required = ("validation",) if chooses else ()
    if is_folder:
        splits, held_out = _labeled_data.of_folder(
            settings.data,
            required,
            listed=_listed(settings.labels),
            on_bad_image=settings.on_bad_image,
            pixels=pixels,
        )
    else:
        splits, held_out = _labeled_data.of_name(
            settings.data,
            required,
            data_dir=settings.data_dir,
            pixels=pixels,
        )
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
        notes,
    )


def _listed(path):
    """The names in a file, one on each line; None without a file."""
    if path is None:
        return None
    try:
        lines = Path(path).read_text("utf-8", "surrogateescape").splitlines()
    except OSError as error:
        raise FileNotFoundError(
            "--labels must be a text file with the name of an image on each "
            f"line. Received: {printable(path)}: {error.strerror}."
        ) from error
    return [line.strip() for line in lines if line.strip()]
