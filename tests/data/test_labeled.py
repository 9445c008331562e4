import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from moco_keras import augmentations, data
from moco_keras.data import ImageSet, ImageStream

COUNT = 13


def folder_of(path, images, labels):
    """A folder of one class a label."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (path / str(label)).mkdir(exist_ok=True)
        Image.fromarray(image).save(path / str(label) / f"{i}.png")
    return data.read(path)


@pytest.fixture(params=["in memory", "folder"])
def images(request, rng, tmp_path):
    """Images whose first pixel tells their number, with labels."""
    pixels = rng.integers(0, 256, (COUNT, 9, 10, 3), "uint8")
    pixels[:, 0, 0, 0] = np.arange(COUNT)
    labels = rng.permutation(np.arange(COUNT) % 3)
    if request.param == "folder":
        return folder_of(tmp_path, pixels, labels)
    return ImageSet(pixels, labels, ["a", "b", "c"], "here")


def label_of(images):
    """The label of each image, by its number."""
    if isinstance(images, ImageSet):
        return dict(enumerate(images.labels))
    examples = images.dataset.as_numpy_iterator()
    return {int(e["image"][0, 0, 0]): int(e["label"]) for e in examples}


def whole(images):
    return tf.cast(images, "float32")


def read(batches, count):
    """The first views and labels of a data set of batches."""
    views, labels = zip(*batches.take(count).as_numpy_iterator(), strict=True)
    return np.concatenate(views), np.concatenate(labels)


def numbers(views):
    return views[:, 0, 0, 0].astype(int)


@pytest.mark.parametrize("batch_size", [1, 4, 13, 20])
def test_every_pass_has_every_image_once_with_its_label(images, batch_size):
    batches = data.labeled_batches(images, whole, batch_size, seed=3)
    views, labels = read(batches, -(-3 * COUNT // batch_size))
    assert views.dtype == "float32"
    assert labels.dtype == "int64"
    assert views.shape[1:] == (9, 10, 3)
    passes = numbers(views)[: 3 * COUNT].reshape(3, COUNT)
    np.testing.assert_array_equal(np.sort(passes), [np.arange(COUNT)] * 3)
    assert len({tuple(order) for order in passes}) == 3
    of_image = label_of(images)
    assert set(of_image.values()) == {0, 1, 2}
    assert [of_image[n] for n in numbers(views)] == labels.tolist()


def test_every_batch_is_full(images):
    augmenter = augmentations.crop_and_flip(8)
    batches = data.labeled_batches(images, augmenter, 20)
    assert [spec.shape for spec in batches.element_spec] == [
        (20, 8, 8, 3),
        (20,),
    ]
    for views, labels in batches.take(3):
        assert len(views) == len(labels) == 20


def test_a_late_start_reads_no_earlier_pass(images):
    read_of = []

    def counted(key):
        def note(example):
            tf.py_function(lambda: read_of.append(None), [], [])
            return example

        return images.encoded(key).map(note)

    given = images
    if isinstance(images, ImageStream):
        given = images._replace(encoded=counted)
    batches = data.labeled_batches(given, whole, 4, start=100 * COUNT)
    late, _ = read(batches, 2)
    expected, _ = read(data.labeled_batches(images, whole, 4), 100 * COUNT + 2)
    np.testing.assert_array_equal(late, expected[-8:])
    if given is not images:  # 400 passes, and a few images ahead
        assert 8 <= len(read_of) < 20 * COUNT


def test_orders_and_views_depend_only_on_the_seed(images):
    def views(seed, augmenter):
        return read(data.labeled_batches(images, augmenter, 4, seed=seed), 5)

    augmenter = augmentations.crop_and_flip(8)
    first = views(3, augmenter)
    assert first[0].shape == (20, 8, 8, 3)
    for again in (
        views(3, augmenter),
        views(3, augmentations.crop_and_flip(8)),
    ):
        for a, b in zip(again, first, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(views(4, augmenter)[0], first[0])
    orders = [numbers(views(seed, whole)[0]) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])


def test_iterating_twice_gives_the_same(images):
    batches = data.labeled_batches(images, augmentations.crop_and_flip(8), 4)
    for a, b in zip(read(batches, 5), read(batches, 5), strict=True):
        np.testing.assert_array_equal(a, b)


def test_views_are_random_for_each_image(rng, tmp_path):
    """Of one image, in each batch and in each pass."""
    pixels = np.repeat(rng.integers(0, 256, (1, 40, 40, 3), "uint8"), 8, axis=0)
    labels = np.arange(8) % 2
    for images in (
        ImageSet(pixels, labels, ["a", "b"], "here"),
        folder_of(tmp_path, pixels, labels),
    ):
        batches = data.labeled_batches(
            images, augmentations.crop_and_flip(8), 4
        )
        views, _ = read(batches, 5)
        assert len(np.unique(views.reshape(20, -1), axis=0)) == 20


def test_images_of_any_sizes(rng, tmp_path):
    for i, shape in enumerate([(9, 14, 3), (20, 7, 3), (11, 11, 3)]):
        (tmp_path / str(i)).mkdir()
        image = Image.fromarray(rng.integers(0, 256, shape, "uint8"))
        image.save(tmp_path / str(i) / "image.png")
    batches = data.labeled_batches(
        data.read(tmp_path), augmentations.crop_and_flip(8), 6
    )
    views, labels = read(batches, 1)
    assert views.shape == (6, 8, 8, 3)
    np.testing.assert_array_equal(np.sort(labels), [0, 0, 1, 1, 2, 2])


def test_fit_takes_them(images):
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    batches = data.labeled_batches(images, augmentations.crop_and_flip(8), 4)
    history = model.fit(
        batches, steps_per_epoch=4, epochs=2, shuffle=False, verbose=0
    )
    assert len(history.history["loss"]) == 2


def test_images_without_a_label_are_refused(rng, tmp_path):
    pixels = rng.integers(0, 256, (4, 9, 9, 3), "uint8")
    labels = np.array([0, -1, 1, 0])
    in_memory = ImageSet(pixels, labels, ["a", "b"], "the source")
    folder_of(tmp_path, pixels, ["a", "b", "a", "b"])
    Image.fromarray(pixels[0]).save(tmp_path / "beside.png")
    of_files = data.read(tmp_path)
    for images in (in_memory, of_files):
        with pytest.raises(ValueError, match=r"must all have.*only_labelled"):
            data.labeled_batches(images, whole, 2)
        some = images.only_labelled()
        views, labels = read(data.labeled_batches(some, whole, 2), 4)
        assert len(views) == 8 and labels.min() >= 0

    prepared = ImageStream(  # as of a data set that has no labels
        encoded=lambda key: tf.data.Dataset.from_tensor_slices(pixels),
        decode=lambda image: {"image": image, "label": np.int64(-1)},
        num_examples=4,
        class_names=[],
        source="the source",
    )
    with pytest.raises(ValueError, match="must all have.*in the source"):
        data.labeled_batches(prepared, whole, 2)


def test_a_prepared_data_set(textures_dir):
    images = data.read("textures", data_dir=textures_dir, examples=6)
    views, labels = read(
        data.labeled_batches(images, augmentations.crop_and_flip(8), 6), 2
    )
    assert views.shape == (12, 8, 8, 3)
    expected = sorted(int(e["label"]) for e in images.dataset)
    for half in (labels[:6], labels[6:]):
        assert sorted(half) == expected


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be a positive"),
        ({"seed": -1}, "`seed` must be an integer from 0 on"),
    ],
)
def test_bad_arguments(kwargs, message, images):
    with pytest.raises(ValueError, match=message):
        data.labeled_batches(images, whole, **{"batch_size": 2} | kwargs)


def test_random_layers_must_belong_to_the_augmenter(images):
    layer = augmentations.RandomHorizontalFlip()
    with pytest.raises(ValueError, match="holds its random layers"):
        data.labeled_batches(images, lambda image: layer(image), 4)
