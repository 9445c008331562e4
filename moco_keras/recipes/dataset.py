"""Pre-trains an encoder on images of TensorFlow Datasets, without their labels.

    python -m moco_keras.recipes.dataset --name=fashion_mnist

It takes any of its data sets of images, in gray, in color, or of more channels
and bits: eurosat/all, for example, has 13 bands. Images of one size, up to 96
pixels, keep it. If they have labels, a kNN follows the training, on the split
test or validation, or else on some of the images that are trained on.

The method is MoCo v2. Encoder, batch, queue, epochs and augmentation are chosen
to fit the images and the device where their flags are not given. They are
printed, and a resumed run keeps them.
"""

import dataclasses
import math

from moco_keras import data
from moco_keras.data.image_sets import UNLABELLED
from moco_keras.distribution import accelerators
from moco_keras.recipes import (
    _cli,
    _data,
    _pixels,
    _pretrain,
    _record,
    _settings,
    _threads,
    image_folder,
)

_SMALL = 96  # pixels
_IN_MEMORY = 0.25  # of the free memory, for images to train on
_UNKNOWN = 4e9  # bytes that are taken to be free where it is not known
_TEST_SPLITS = "test", "validation"


@dataclasses.dataclass(frozen=True)
class DatasetSettings(_settings.Settings):
    """Those of all programs, and of a data set."""

    name: str | None = _settings.setting(
        None,
        "of the data set, such as fashion_mnist, eurosat/all or cifar10:3.0.2",
    )
    split: str = _settings.setting(
        "train", "what to train on, such as unlabelled or train[:50%]"
    )
    image_size: str | int | None = _settings.image_size()


def dataset(settings):
    """Trains, with the images' own size if it is small and no other is given.

    Raises:
        FileNotFoundError: if the data set is neither there nor downloadable.
        ValueError: if it has no images, or the settings do not fit them.
    """
    _threads.share_cores()
    if not settings.name:
        raise ValueError(
            "--name must be given: a data set of TensorFlow Datasets, such as "
            "fashion_mnist."
        )
    builder = data.find_builder(settings.name, settings.data_dir)
    if settings.image_size is None and builder is not None:
        side = _own_side(builder)
        if settings.run_dir:  # a run that resumes keeps its own
            name = "image_size"
            side = _record.recorded_setting(settings.run_dir, name) or side
        settings = dataclasses.replace(settings, image_size=side)
    _pretrain.pretrain(settings, "dataset", read)


def _own_side(builder):
    """The side of images that are small squares of one size, or None."""
    feature = builder.info.features[data.image_feature(builder)]
    height, width, _ = feature.shape
    return (
        height if height == width and (height or math.inf) <= _SMALL else None
    )


def read(settings):
    """The data set, in memory if it fits, and images to evaluate with."""

    def stream(split, examples=None):
        found = data.read_named(
            settings.name, split, data_dir=settings.data_dir, examples=examples
        )
        return _data.in_channels(found, settings.channels)

    train = stream(settings.split, settings.train_examples)
    parts = settings.split.split("+")  # as in train[:50%]+test
    of_train = {part.partition("[")[0].strip() for part in parts}
    others = data.find_builder(settings.name, settings.data_dir).info.splits
    others = [split for split in others if split not in of_train]
    bank_split, bank = settings.split, train
    if not _has_labels(train) and "train" in others:
        bank_split, bank = "train", stream("train")
    tests_split = next((x for x in _TEST_SPLITS if x in others), None)
    tests = None
    if tests_split and (_has_labels(bank) == _has_labels(stream(tests_split))):
        tests = stream(tests_split, settings.test_examples)
    labeled, most = bank, None
    size = _pixels.parse_size(settings.image_size)
    if _fits_memory(train, size):
        loaded = train.load()
        bank = loaded if bank is train else bank
        train = loaded
    else:
        most = settings.test_examples or _data.TESTS
    if tests is None:
        tests, bank = _data.held_out(settings, labeled, settings.name)
        note = f"Tests: images of the split {bank_split}"
        if bank_split == settings.split:
            note += ", also trained on"
    else:
        tests = _loaded(tests, most, size)
        bank = _loaded(bank, most and _data.OF_BANK * most, size)
        note = f"Tests: images of the split {tests_split}"
    note += f"; compared with images of {bank_split}"
    return _data.Images(train, bank, tests, [note])


def _has_labels(stream):
    """Whether the images of a split have labels: all have one, or none."""
    (first,) = stream.dataset.take(1).as_numpy_iterator()
    return first["label"] != UNLABELLED


def _fits_memory(stream, size):
    """Whether images are of a size, and can be held."""
    spec = stream.dataset.element_spec["image"]
    if tuple(spec.shape[:2]) != size:
        return False
    need = stream.num_examples * math.prod(spec.shape) * spec.dtype.size
    free = accelerators.free_memory()
    if accelerators.on_gpu() or free is None:
        free = _UNKNOWN
    return need <= _IN_MEMORY * free


def _loaded(images, most, size):
    """An `ImageSet` of images, some of them if there are many."""
    if isinstance(images, data.ImageSet):
        return images
    count = None if most is None else min(most, images.num_examples)
    spec = images.dataset.element_spec["image"]
    fits = tuple(spec.shape[:2]) == size
    return images.load(count, image_size=None if fits else size)


DEFAULTS = DatasetSettings(
    **{
        field.name: getattr(image_folder.DEFAULTS, field.name)
        for field in dataclasses.fields(_settings.Settings)
    }
)

if __name__ == "__main__":
    _cli.run(DEFAULTS, dataset)
