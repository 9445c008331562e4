"""Data sets of TensorFlow Datasets."""

import os
import urllib.error
import urllib.request

import tensorflow as tf

from moco_keras import arguments, random
from moco_keras.data.image_sets import UNLABELLED, ImageStream, check_examples

# TFDS's order is random. It is shuffled again within as many neighbors.
_SHUFFLED = 4096


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
            "TensorFlow Datasets must be given only a version and a config "
            f"that it knows. Received: {name!r}.\n{error}"
        ) from error


def read(builder, split, examples):
    """Opens a split of a data set, which is prepared first if need be.

    Args:
        builder: what `find_builder` returns.
        split: its name, or a part of it in TFDS's words: "train[:90%]".
        examples: how many to take, the first ones; None means all.

    Returns:
        An `ImageStream`.

    Raises:
        FileNotFoundError: if it is neither prepared nor can be downloaded.
        ValueError: if it has no such split, fewer examples, or no images.
    """
    name = builder.name
    # TFDS would warn that a folder that is not there yet is empty.
    if not (builder.data_path.exists() and builder.is_prepared()):
        _refuse_if_offline(builder)
        builder.download_and_prepare()
    try:
        available = builder.info.splits[split].num_examples
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"`split` must be one of {', '.join(builder.info.splits)} for "
            f"{name}, or a part of one. Received: split={split!r}."
        ) from error
    check_examples(examples, available, f"{name}, split {split}")
    kept = available if examples is None else examples
    first = f"{split}[:{kept}]" if split in builder.info.splits else split
    features = builder.info.features
    key_of_images = image_feature(builder)

    import tensorflow_datasets as tfds

    dataset = builder.as_dataset(
        split=first,
        decoders={key_of_images: tfds.decode.SkipDecoding()},
    ).take(kept)

    def in_order(key):
        # The order of `Dataset.shuffle` would depend on TensorFlow's seed too.
        def shuffle(number, examples):
            own = random.fold_in(key, number)
            count = tf.shape(examples[key_of_images])[0]
            rows = random.permutation(own, count)
            return tf.nest.map_structure(lambda x: tf.gather(x, rows), examples)

        if key is None:
            return dataset
        return dataset.batch(_SHUFFLED).enumerate().map(shuffle).unbatch()

    def decode(example):
        label = example.get("label", tf.constant(UNLABELLED, tf.int64))
        encoded = example[key_of_images]
        image = features[key_of_images].decode_example(encoded)
        return {"image": image, "label": label}

    label = features["label"] if "label" in features else None
    return ImageStream(
        in_order,
        decode,
        kept,
        list(getattr(label, "names", None) or []),  # numbers may have none
        builder.info.full_name,
    )


def image_feature(builder):
    """The name of the feature that holds the images of a data set.

    It is "image", or the only one of three dimensions.
    """
    features = builder.info.features
    if "image" in features:
        return "image"
    found = [
        name
        for name, feature in features.items()
        if len(getattr(feature, "shape", None) or ()) == 3
    ]
    if len(found) != 1:
        raise ValueError(
            f"{builder.name} must have a feature called `image`, or one of "
            "three dimensions, to be a data set of images. Received the "
            f"features: {', '.join(features)}."
        )
    return found[0]


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
