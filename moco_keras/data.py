"""Images from TensorFlow Datasets, from folders, and in tf.data pipelines.

Data that is not there is an error that says what was looked for and where;
nothing else ever stands in for it.
"""

import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from moco_keras import inputs

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")
_UNLABELLED = -1


class ImageSet(NamedTuple):
    """Images in memory, with what is known of them.

    Attributes:
        images: uint8 (N, H, W, 3).
        labels: int64 (N,), -1 where there are none.
        class_names: a name for each label.
        source: the data set and its version, or the folder.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: list[str]
    source: str


class ImageStream(NamedTuple):
    """The same, read from files when they are needed.

    Attributes:
        dataset: a `tf.data.Dataset` of {"image": uint8 (H, W, 3), "label":
            int64 ()}, one example at a time.
        num_examples, class_names, source: as in `ImageSet`.
    """

    dataset: tf.data.Dataset
    num_examples: int
    class_names: list[str]
    source: str


def load(
    source, split="train", *, data_dir=None, examples=None, image_size=None
):
    """Reads a data set of images into memory.

    Args:
        source: a name of TensorFlow Datasets, such as "cifar10"; "textures",
            which draws itself; or a folder of images, with a folder for each
            class or without.
        split: the split of a TFDS data set; a folder has no splits.
        data_dir: where TFDS data sets are kept. By default the environment
            variable MOCO_KERAS_DATA_DIR, or else TFDS's own default.
        examples: how many to take, from a fixed shuffle: the first of TFDS's
            own order, which was shuffled when the data set was made, or of a
            seeded shuffle of a folder. None takes all.
        image_size: side in pixels to bring the images to, as
            `augmentations.evaluation` does; needed where sizes differ.

    Returns:
        An `ImageSet`.

    Raises:
        FileNotFoundError: if the data set is neither there nor downloadable.
        ValueError: if it holds something other than RGB images of one size, or
            fewer than `examples`.
    """
    stream = read(source, split, data_dir=data_dir, examples=examples)
    dataset = stream.dataset
    if image_size is not None:
        from moco_keras import augmentations  # slow to import

        evaluation = augmentations.evaluation(image_size)

        def resize(example):
            image = tf.round(evaluation(example["image"]))
            return {**example, "image": tf.cast(image, tf.uint8)}

        dataset = dataset.map(resize, num_parallel_calls=tf.data.AUTOTUNE)
    batch = (
        1024 if dataset.element_spec["image"].shape.is_fully_defined() else 1
    )
    images, labels = [], []
    for chunk in dataset.batch(batch).as_numpy_iterator():
        if images and chunk["image"].shape[1:] != images[0].shape[1:]:
            raise ValueError(
                "Images must have one size to be held in memory. Received, in "
                f"{stream.source}: {images[0].shape[1:]} and "
                f"{chunk['image'].shape[1:]}. Give `image_size`, or train on "
                "`data.two_views(data.read(...).dataset, ...)`."
            )
        images.append(chunk["image"])
        labels.append(chunk["label"])
    images = np.concatenate(images)
    inputs.check_images(images)
    return ImageSet(
        images, np.concatenate(labels), stream.class_names, stream.source
    )


def read(source, split="train", *, data_dir=None, examples=None):
    """Opens a data set of images without reading it into memory.

    Args and errors: as `load`.

    Returns:
        An `ImageStream`.
    """
    if examples is not None and examples < 1:
        raise ValueError(
            f"`examples` must be at least 1. Received: examples={examples}."
        )
    if isinstance(source, str) and os.sep not in source:
        builder = find_builder(source, data_dir)
        if builder is not None:
            return _read_tfds(builder, split, examples)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            "A data set must be a name of TensorFlow Datasets or a folder of "
            f"images that exists. Received: {str(source)!r}, which is neither."
        )
    return _read_folder(folder, examples)


def two_views(dataset, augmenter, batch_size):
    """Cuts two random views from each image, for images of unequal sizes.

    Args:
        dataset: a `tf.data.Dataset` of single images, uint8 (H, W, 3), alone,
            as (image, label) or as {"image", "label"}.
        augmenter: a pipeline of `augmentations`.
        batch_size: views in a batch; the last batch is dropped if not full.

    Returns:
        A `tf.data.Dataset` of pairs (im_q, im_k), float32 (N, S, S, 3) each,
        that `MoCo.fit` takes.
    """
    inputs.check_images(inputs.images_of(dataset.batch(1).element_spec))

    def views(*example):
        image = inputs.images_of(example)
        return augmenter(image), augmenter(image)

    return inputs.without_autotuning(
        dataset.map(views, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(batch_size, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def find_builder(name, data_dir=None):
    """The TFDS builder of a data set, or None for a name it does not know."""
    import tensorflow_datasets as tfds

    if name == "textures":
        from moco_keras import textures  # noqa: F401 (registers the builder)
    data_dir = data_dir or os.environ.get("MOCO_KERAS_DATA_DIR") or None
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        return None


def _read_tfds(builder, split, examples):
    name = builder.name
    if not builder.is_prepared():
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

    def image_and_label(example):
        label = example.get("label", tf.constant(_UNLABELLED, tf.int64))
        return {"image": example["image"], "label": label}

    labelled = "label" in features
    return ImageStream(
        builder.as_dataset(split=f"{split}[:{kept}]").map(image_and_label),
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


def _check_examples(examples, available, where):
    if examples is not None and examples > available:
        raise ValueError(
            f"At most {available} examples can be taken from {where}. "
            f"Received: {examples}."
        )


def _read_folder(folder, examples):
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    )
    if not files:
        raise ValueError(
            "A folder of images must hold at least one JPEG, PNG, GIF or BMP "
            f"file. Received: {folder}, which holds none."
        )
    strangers = [path for path in files if not _is_image(path)]
    if strangers:
        names = ", ".join(str(path) for path in strangers[:5])
        raise ValueError(
            "A folder of images must hold JPEG, PNG, GIF or BMP files only. "
            f"Received {len(strangers)} other files: {names}. Move them "
            "elsewhere."
        )
    _check_examples(examples, len(files), str(folder))
    if examples is not None:
        order = np.random.default_rng(0).permutation(len(files))[:examples]
        files = [files[i] for i in sorted(order)]
    parts = [path.relative_to(folder).parts for path in files]
    class_names = sorted({names[0] for names in parts if len(names) > 1})
    labels = [
        class_names.index(names[0]) if len(names) > 1 else _UNLABELLED
        for names in parts
    ]

    def decode(file, label):
        image = tf.io.decode_image(
            tf.io.read_file(file), channels=3, expand_animations=False
        )
        image.set_shape((None, None, 3))
        return {"image": image, "label": label}

    dataset = tf.data.Dataset.from_tensor_slices(
        ([str(path) for path in files], np.array(labels, "int64"))
    )
    return ImageStream(
        dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE),
        len(files),
        class_names,
        str(folder),
    )


def _is_image(path):
    with path.open("rb") as file:
        return file.read(8).startswith(_SIGNATURES)
