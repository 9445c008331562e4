"""Images with their labels: held in memory, or read as they are needed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from moco_keras import arguments
from moco_keras.data import checks
from moco_keras.data.damaged import Damaged
from moco_keras.system.paths import printable

UNLABELLED = -1
_SAMPLE = 64  # images whose values are checked before they are used


class ImageSet(NamedTuple):
    """Images in memory, with what is known of them.

    Attributes:
        images: (N, H, W, C).
        labels: int64 (N,), -1 for an image without one.
        class_names: a name for each label.
        source: the data set and its version, or the folder's name and a digest
            of the images' names and contents.
        skipped: (path, reason) of each file of a folder that was left out,
            because it is not an image, or for another reason.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: list[str]
    source: str
    skipped: Sequence[tuple[Path, str]] = ()

    @property
    def num_examples(self):
        """Number of images."""
        return len(self.images)

    @property
    def labelled(self):
        """Whether every image has a label."""
        return bool((self.labels != UNLABELLED).all())

    def only_labelled(self):
        """Returns an `ImageSet` of the images that have a label."""
        has_label = self.labels != UNLABELLED
        return self._replace(
            images=self.images[has_label], labels=self.labels[has_label]
        )


class ImageStream(NamedTuple):
    """Images that are read from files when they are needed.

    Attributes:
        encoded: function from a key, int64 (2,), to a `tf.data.Dataset` of what
            is to be decoded, in the order that the key fixes, or from None to
            one in the original order.
        decode: function from an element to {"image": (H, W, C), "label": int64
            ()}.
        num_examples: their number.
        class_names, source, skipped: as in `ImageSet`.
        labels: of a folder, as in `ImageSet`; else None, as they are in files.
        copies: share of a folder's files that equal an earlier one, as far as
            a quick look shows; else None.
        notes: lines on images of a folder that are converted.
        damaged: of a folder, `damaged.Damaged`.
    """

    encoded: Callable
    decode: Callable
    num_examples: int
    class_names: list[str]
    source: str
    skipped: Sequence[tuple[Path, str]] = ()
    labels: np.ndarray | None = None
    copies: float | None = None
    notes: Sequence[str] = ()
    damaged: Damaged | None = None

    @property
    def dataset(self):
        """A `tf.data.Dataset` of all, decoded, in their original order.

        In place of a damaged image of a folder stands the next one. Of these,
        only `load` and `two_views` tell.
        """
        if self.damaged is None:
            return self._decoded(None).map(lambda _, example: example)
        # Twice, so that the first can stand for the last.
        twice = self._replace(encoded=lambda key: self.encoded(key).repeat(2))

        def times(last, numbered):
            number, example = numbered
            return number, (number - last, example)

        count = tf.data.experimental.assert_cardinality(self.num_examples)
        return (
            twice._decoded(None)
            .scan(tf.constant(-1, "int64"), times)
            .flat_map(lambda n, x: tf.data.Dataset.from_tensors(x).repeat(n))
            .take(self.num_examples)
            .apply(count)
        )

    @property
    def image_dtype(self):
        """The type of the images, a name."""
        return self.dataset.element_spec["image"].dtype.name

    @property
    def channels(self):
        """The number of channels of the images."""
        return self.dataset.element_spec["image"].shape[-1]

    def _decoded(self, key):
        """Pairs of a number and what is decoded; without the damaged ones."""
        decoded = (
            self.encoded(key)
            .enumerate()
            .map(
                lambda number, example: (number, self.decode(example)),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
        )
        return decoded if self.damaged is None else decoded.ignore_errors()

    def _tell_of_damaged(self, key, numbers, count):
        """Says which of the first images were not among the decoded ones."""
        end = self.num_examples if len(numbers) < count else numbers[-1] + 1
        missing = set(range(end)) - set(numbers)
        if not missing:
            return
        examples = enumerate(self.encoded(key).as_numpy_iterator())
        paths = [example["path"] for i, example in examples if i in missing]
        self.damaged.add(paths)
        if not numbers:
            path, reason = next(iter(self.damaged.found.items()))
            raise ValueError(
                "There must be images that can be read. Received, in "
                f"{self.source}: {end:,} that cannot, such as "
                f"{printable(path)}: {reason}. Is their disk still there?"
            )

    def in_channels(self, channels):
        """The same images in gray, or in RGB.

        Args:
            channels: 1 or 3.

        Returns:
            An `ImageStream`.

        Raises:
            ValueError: if they have other channels than one, three, or RGB with
                alpha, which is dropped.
        """
        there = self.channels
        if there == channels:
            return self
        if channels not in (1, 3) or there not in (1, 3, 4):
            raise ValueError(
                "Images must have one, three or four channels to be converted "
                f"to one or three. Received: {there} channels, in "
                f"{self.source}, and channels={channels!r}."
            )

        def decode(example):
            decoded = self.decode(example)
            image = decoded["image"][..., :3]
            if channels == 1 < there:
                image = tf.image.rgb_to_grayscale(image)
            elif there == 1:
                image = tf.image.grayscale_to_rgb(image)
            return {**decoded, "image": image}

        return self._replace(decode=decode)

    def only_labelled(self):
        """Returns an `ImageStream` of a folder's images that have a label."""
        has_label = self.labels != UNLABELLED

        def encoded(key):
            return self.encoded(key).filter(
                lambda example: example["label"] != UNLABELLED
            )

        return self._replace(
            encoded=encoded,
            num_examples=int(has_label.sum()),
            labels=self.labels[has_label],
        )

    def check_images(self, pixels=None):
        """Raises `ValueError`, with a remedy, if these are not such images.

        Args:
            pixels: what they must be, a `PixelFormat`; None takes any.
        """
        example = self.dataset.batch(1).element_spec
        dataset = "moco_keras.data.read(...).dataset"
        checks.check_images(example["image"], example, dataset, pixels)
        if pixels and self.image_dtype == "uint8" and pixels.bounds[1] > 255:
            raise ValueError(
                f"Images must have pixels in {pixels}. Received: images of "
                f"uint8, which end at 255, in {self.source}."
            )
        if pixels and pixels.value_range:
            for i, found in enumerate(self.dataset.take(_SAMPLE)):
                try:
                    checks.check_images(found["image"][None], pixels=pixels)
                except ValueError as error:
                    raise ValueError(
                        f"{error} This is image {i} of {self.source}."
                    ) from None

    def load(self, count=None, *, image_size=None):
        """Reads images into memory.

        Args:
            count: how many, of a fixed shuffle; None takes all, in their order.
            image_size: as in `data.load`.

        Returns:
            An `ImageSet`; without the damaged images of a folder, which
            `damaged` lists.

        Raises:
            ValueError: if they are not images of one size, or none can be read.
        """
        self.check_images()
        if count is not None:
            count = arguments.whole(count=count)
        key = None if count is None else tf.zeros(2, "int64")
        count = self.num_examples if count is None else count
        dataset = self._decoded(key).take(count)
        if image_size is not None:
            from moco_keras import augmentations  # slow to import

            evaluation = augmentations.evaluation(image_size)

            def resize(number, example):
                image = evaluation(example["image"])
                dtype = example["image"].dtype
                if dtype.is_integer:
                    image = tf.round(image)
                return number, {**example, "image": tf.cast(image, dtype)}

            dataset = dataset.map(resize, num_parallel_calls=tf.data.AUTOTUNE)
        shape = dataset.element_spec[1]["image"].shape
        batch = 1024 if shape.is_fully_defined() else 1
        images, labels, numbers = [], [], []
        for rows, chunk in dataset.batch(batch).as_numpy_iterator():
            if images and chunk["image"].shape[1:] != images[0].shape[1:]:
                raise ValueError(
                    "Images must have one size to be held in memory. Received, "
                    f"in {self.source}: {images[0].shape[1:]} and "
                    f"{chunk['image'].shape[1:]}. Give `image_size`, or train "
                    "on `data.two_views(data.read(...), ...)`."
                )
            images.append(chunk["image"])
            labels.append(chunk["label"])
            numbers += rows.tolist()
        if self.damaged is not None:
            self._tell_of_damaged(key, numbers, count)
        return ImageSet(
            np.concatenate(images),
            np.concatenate(labels),
            self.class_names,
            self.source,
            self.skipped,
        )


def check_examples(examples, available, where):
    """Refuses to take more examples than there are."""
    if examples is not None and examples > available:
        raise ValueError(
            f"At most {available} examples can be taken from {where}. "
            f"Received: {examples}."
        )
