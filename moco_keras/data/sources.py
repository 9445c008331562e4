"""Images from TensorFlow Datasets and from folders.

Data that is not there is an error that says what was looked for and where;
nothing else ever stands in for it.
"""

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from moco_keras import arguments, random
from moco_keras.data import image_files, inputs
from moco_keras.data.views import two_views  # noqa: F401 (of `read`'s streams)

# What folders of splits are called, in lower case, and their splits.
SPLITS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_UNLABELLED = -1
_BESIDE = "In none of the folders of splits, beside it"
# TFDS's order, which is random, is put into another by as many neighbours.
_SHUFFLED = 4096


class ImageSet(NamedTuple):
    """Images in memory, with what is known of them.

    Attributes:
        images: uint8 (N, H, W, 3).
        labels: int64 (N,), -1 where there are none.
        class_names: a name for each label.
        source: the data set and its version, or the folder's name and a digest
            of the images' names and contents.
        skipped: (path, reason) of each file of a folder that was left out,
            because it is no image, or for another reason.
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
        return bool((self.labels != _UNLABELLED).all())

    def only_labelled(self):
        """The same, of the images that have a label."""
        has_label = self.labels != _UNLABELLED
        return self._replace(
            images=self.images[has_label], labels=self.labels[has_label]
        )


class ImageStream(NamedTuple):
    """The same, read from files when they are needed.

    Attributes:
        examples: function from a key, int64 (2,), to a `tf.data.Dataset` of
            what is to be decoded, in the order that the key fixes. None
            leaves it in its own.
        decode: function from an element to {"image": uint8 (H, W, 3), "label":
            int64 ()}.
        num_examples: their number.
        class_names, source, skipped: as in `ImageSet`.
        labels: of a folder, as in `ImageSet`; else None, as they are in files.
    """

    examples: Callable
    decode: Callable
    num_examples: int
    class_names: list[str]
    source: str
    skipped: Sequence[tuple[Path, str]] = ()
    labels: np.ndarray | None = None

    @property
    def dataset(self):
        """A `tf.data.Dataset` of all, decoded, in their own order."""
        return self._decoded(None)

    def _decoded(self, key):
        return self.examples(key).map(
            self.decode, num_parallel_calls=tf.data.AUTOTUNE
        )

    def only_labelled(self):
        """The same, of the images of a folder that have a label."""
        has_label = self.labels != _UNLABELLED

        def examples(key):
            return self.examples(key).filter(
                lambda example: example["label"] != _UNLABELLED
            )

        return self._replace(
            examples=examples,
            num_examples=int(has_label.sum()),
            labels=self.labels[has_label],
        )

    def check_images(self):
        """Refuses what is not a stream of RGB images, saying what to do."""
        example = self.dataset.batch(1).element_spec
        inputs.check_images(
            example["image"], example, "moco_keras.data.read(...).dataset"
        )

    def load(self, count=None, *, image_size=None):
        """Reads images into memory.

        Args:
            count: how many, of a fixed shuffle; None takes all, in their order.
            image_size: see `load`.

        Returns:
            An `ImageSet`.

        Raises:
            ValueError: if they are not RGB images of one size.
        """
        self.check_images()
        if count is not None:
            count = arguments.whole(count=count)
        key = None if count is None else tf.zeros(2, "int64")
        dataset = self._decoded(key).take(-1 if count is None else count)
        if image_size is not None:
            from moco_keras import augmentations  # slow to import

            evaluation = augmentations.evaluation(image_size)

            def resize(example):
                image = tf.round(evaluation(example["image"]))
                return {**example, "image": tf.cast(image, tf.uint8)}

            dataset = dataset.map(resize, num_parallel_calls=tf.data.AUTOTUNE)
        shape = dataset.element_spec["image"].shape
        batch = 1024 if shape.is_fully_defined() else 1
        images, labels = [], []
        for chunk in dataset.batch(batch).as_numpy_iterator():
            if images and chunk["image"].shape[1:] != images[0].shape[1:]:
                raise ValueError(
                    "Images must have one size to be held in memory. Received, "
                    f"in {self.source}: {images[0].shape[1:]} and "
                    f"{chunk['image'].shape[1:]}. Give `image_size`, or train "
                    "on `data.two_views(data.read(...), ...)`."
                )
            images.append(chunk["image"])
            labels.append(chunk["label"])
        return ImageSet(
            np.concatenate(images),
            np.concatenate(labels),
            self.class_names,
            self.source,
            self.skipped,
        )


def load(
    source,
    split="train",
    *,
    data_dir=None,
    examples=None,
    image_size=None,
    on_bad_image="skip",
):
    """Reads a data set of images into memory.

    Args:
        source: a folder of images, with a folder for each class or without;
            or, where no folder is called so, a name of TensorFlow Datasets,
            such as "cifar10", "name/config" or "name:1.0.0"; or "textures",
            which draws itself. `read_folder` and `read_named` take one of the
            two only.
        split: the split of a TFDS data set, or of a folder: see `read_splits`.
        data_dir: where TFDS data sets are kept. By default the environment
            variable MOCO_KERAS_DATA_DIR, or else TFDS's own default.
        examples: how many to take, from a fixed shuffle: the first of TFDS's
            own order, which was shuffled when the data set was made, or of a
            seeded shuffle of a folder. None takes all.
        image_size: side in pixels to bring the images to, as
            `augmentations.evaluation` does; needed where sizes differ.
        on_bad_image: whether to "skip" files of a folder that cannot be
            decoded, or to end with an "error" at the first.

    Paths may begin with `~`.

    Returns:
        An `ImageSet`.

    Raises:
        FileNotFoundError: if the data set is neither there nor downloadable.
        ValueError: if it has no such split, or holds something other than RGB
            images of one size, or fewer than `examples`, or, if requested, a
            file that is no image.
    """
    stream = read(
        source,
        split,
        data_dir=data_dir,
        examples=examples,
        on_bad_image=on_bad_image,
    )
    return stream.load(image_size=image_size)


def read(
    source,
    split="train",
    *,
    data_dir=None,
    examples=None,
    on_bad_image="skip",
):
    """Opens a data set of images without holding it in memory.

    Args and errors: as `load`. All files of a folder are decoded once, to see
    which of them are images.

    Returns:
        An `ImageStream`.
    """
    if str(source) and arguments.path(source=source).is_dir():
        return read_folder(
            source, split, examples=examples, on_bad_image=on_bad_image
        )
    if not isinstance(source, str):
        raise _neither(source)
    return read_named(source, split, data_dir=data_dir, examples=examples)


def read_folder(folder, split="train", *, examples=None, on_bad_image="skip"):
    """Opens a folder of images, whatever it is called.

    Args and errors: as `load`.

    Returns:
        An `ImageStream`.
    """
    examples = _count(examples)
    found = _find(folder, on_bad_image)
    named = SPLITS.get(str(split).lower())
    if named not in found.splits:
        raise ValueError(
            f"`split` must be one of {', '.join(found.splits)} for the folder "
            f"{image_files.printable(folder)}. Received: split={split!r}. "
            "Splits are folders called train, val, valid, validation or test, "
            "one of them train, and either two at least or no others beside it."
        )
    return _stream(found, named, examples)


def read_splits(folder, *, examples=None, on_bad_image="skip"):
    """Opens a folder of images, each of its splits apart.

    A folder has splits if it holds folders called train and val, valid,
    validation or test, in whatever case, or train alone: as TFDS's
    `ImageFolder` has it. The folders in these are classes, and images that are
    in none of these are left out and listed. Any other folder is one
    split, "train", and the folders directly in it are classes. Images that are
    in no folder of a class have the label -1.

    Args:
        folder: its path.
        examples: how many images of "train" to take, see `load`.
        on_bad_image: see `load`.

    Returns:
        A dict of `ImageStream`s: "train", and, if they are there, "validation"
        and "test". A class has the same number in all.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: as `load`.
    """
    examples = _count(examples)
    found = _find(folder, on_bad_image)
    return {
        split: _stream(found, split, examples if split == "train" else None)
        for split in found.splits
    }


def read_named(name, split="train", *, data_dir=None, examples=None):
    """Opens a data set of TFDS, whatever folders there are.

    Args and errors: as `load`.

    Returns:
        An `ImageStream`.
    """
    examples = _count(examples)
    builder = find_builder(name, data_dir)
    if builder is None:
        raise _neither(name)
    return _read_tfds(builder, split, examples)


def _neither(source):
    return FileNotFoundError(
        "A data set must be a name of TensorFlow Datasets or a folder of "
        f"images that exists. Received: {image_files.printable(source)!r}, "
        "which is neither."
    )


def find_builder(name, data_dir=None):
    """The TFDS builder of a data set, or None for a name it does not know.

    Raises:
        ValueError: if TFDS knows the name, but not this version or config.
    """
    import tensorflow_datasets as tfds

    if name == "textures":
        from moco_keras.data import textures  # noqa: F401 (registers the builder)
    data_dir = data_dir or os.environ.get("MOCO_KERAS_DATA_DIR") or None
    if data_dir and "://" not in str(data_dir):
        data_dir = arguments.path(data_dir=data_dir)
    try:
        tfds.core.naming.parse_builder_name_kwargs(name)
    except ValueError:
        return None
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        return None
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(
            "A name of TensorFlow Datasets must have a version and a config "
            f"that it knows, or none. Received: {name!r}.\n{error}"
        ) from error


def _read_tfds(builder, split, examples):
    name = builder.name
    # Of a folder that is not there yet, TFDS would warn that it is empty.
    if not (builder.data_path.exists() and builder.is_prepared()):
        _refuse_if_offline(builder)
        builder.download_and_prepare()
    if split not in builder.info.splits:
        raise ValueError(
            f"`split` must be one of {', '.join(builder.info.splits)} for "
            f"{name}. Received: split={split!r}."
        )
    available = builder.info.splits[split].num_examples
    _check_examples(examples, available, f"{name}, split {split}")
    kept = available if examples is None else examples
    features = builder.info.features
    if "image" not in features:
        raise ValueError(
            f"{name} must have a feature called `image` to be a data set of "
            f"images. Received the features: {', '.join(features)}."
        )

    import tensorflow_datasets as tfds

    dataset = builder.as_dataset(
        split=f"{split}[:{kept}]",
        decoders={"image": tfds.decode.SkipDecoding()},
    )

    def in_order(key):
        # The order of `Dataset.shuffle` would depend on TensorFlow's seed too.
        def shuffle(number, examples):
            own = random.fold_in(key, number)
            rows = random.permutation(own, tf.size(examples["image"]))
            return tf.nest.map_structure(lambda x: tf.gather(x, rows), examples)

        if key is None:
            return dataset
        return dataset.batch(_SHUFFLED).enumerate().map(shuffle).unbatch()

    def decode(example):
        label = example.get("label", tf.constant(_UNLABELLED, tf.int64))
        image = features["image"].decode_example(example["image"])
        return {"image": image, "label": label}

    labelled = "label" in features
    return ImageStream(
        in_order,
        decode,
        kept,
        list(features["label"].names) if labelled else [],
        builder.info.full_name,
    )


def _refuse_if_offline(builder):
    """Fails at once where TFDS would retry for minutes and then fail."""
    url = next(iter(builder.url_infos or {}), None)
    if url is None:  # a data set that draws itself, or says nothing
        return
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.HTTPError:
        return  # somebody answered
    except OSError as error:
        raise FileNotFoundError(
            f"The data set {builder.name} was found neither prepared nor "
            f"downloadable.\n  Looked for: {builder.data_path}\n"
            f"  Tried: {url} ({error})\n"
            "If it is prepared elsewhere, say where with --data_dir=FOLDER, "
            "the folder that holds "
            f"{builder.name}/{builder.version}, or with the environment "
            "variable MOCO_KERAS_DATA_DIR. To see training on images that "
            "need no download, run: make demo"
        ) from None


def _count(examples):
    return None if examples is None else arguments.whole(examples=examples)


def _check_examples(examples, available, where):
    if examples is not None and examples > available:
        raise ValueError(
            f"At most {available} examples can be taken from {where}. "
            f"Received: {examples}."
        )


class _File(NamedTuple):
    path: Path
    digest: bytes  # of what it holds
    class_name: str | None


class _Folder(NamedTuple):
    path: Path
    splits: dict[str, list[_File]]
    class_names: list[str]
    skipped: list[tuple[Path, str]]


def _find(folder, on_bad_image):
    """Finds the images of a folder, by their splits."""
    where = arguments.path(folder=folder) if str(folder) else None
    if where is None or not where.is_dir():
        raise FileNotFoundError(
            "A folder of images must be a folder that exists. Received: "
            f"{image_files.printable(folder)!r}, looked for in {Path.cwd()}."
        )
    files, digests, skipped = image_files.scan(where, on_bad_image)
    names = [path.relative_to(where).parts for path in files]
    split_of = _splits_of({name[0] for name in names if len(name) > 1})
    splits = {}
    for path, digest, name in zip(files, digests, names, strict=True):
        split = "train"
        if split_of:
            split = split_of.get(name[0]) if len(name) > 1 else None
            if split is None:
                skipped.append((path, _beside(name)))
                continue
            name = name[1:]
        class_name = name[0] if len(name) > 1 else None
        splits.setdefault(split, []).append(_File(path, digest, class_name))
    classes = {f.class_name for files in splits.values() for f in files}
    class_names = sorted(classes - {None}, key=image_files.key)
    return _Folder(where, splits, class_names, skipped)


def _splits_of(folders):
    """By name of a folder, its split; an empty dict where they are not that."""
    splits = {name: SPLITS.get(name.lower()) for name in folders}
    found = set(splits.values())
    # train and one other name of a split are enough to be meant as such.
    is_split = "train" in found and (None not in found or len(found) > 2)
    return {k: v for k, v in splits.items() if v} if is_split else {}


def _beside(name):
    """Why a file is left out that is in no folder of a split."""
    if len(name) == 1:
        return _BESIDE
    folder = image_files.printable(name[0])
    return f"In {folder}, which is no split; images directly in train are used"


def _stream(folder, split, examples):
    """The images of a split, of a `_Folder`, or so many of them."""
    files = folder.splits[split]
    _check_examples(examples, len(files), image_files.printable(folder.path))
    if examples is not None:
        order = np.random.default_rng(0).permutation(len(files))[:examples]
        files = [files[i] for i in sorted(order)]
    numbers = {name: i for i, name in enumerate(folder.class_names)}
    labels = [numbers.get(file.class_name, _UNLABELLED) for file in files]
    labels = tf.constant(labels, "int64")
    paths = tf.constant([os.fsencode(file.path) for file in files])

    def in_order(key):
        rows = tf.range(len(files), dtype="int64")
        if key is not None:
            rows = random.permutation(key, len(files))
        return tf.data.Dataset.from_tensor_slices(
            {"path": tf.gather(paths, rows), "label": tf.gather(labels, rows)}
        )

    def decode(example):
        image = image_files.decode(tf.io.read_file(example["path"]))
        return {"image": image, "label": example["label"]}

    digest = hashlib.sha256()
    for file in files:
        name = os.fsencode(file.path.relative_to(folder.path))
        digest.update(name + b"\0" + file.digest)
    name = image_files.printable(folder.path.resolve().name)
    return ImageStream(
        in_order,
        decode,
        len(files),
        [image_files.printable(name) for name in folder.class_names],
        f"{name} {digest.hexdigest()[:12]}",
        folder.skipped,
        labels.numpy(),
    )
