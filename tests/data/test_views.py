import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from moco_keras import Checkpoint, augmentations, data, distribution
from moco_keras.pixel_format import RGB

STEPS = 3  # of 4 images each, of 13 images


@pytest.fixture(params=["folder", "tfds"])
def stream(request, tmp_path, textures_dir):
    """Thirteen images that are not held in memory."""
    if request.param == "tfds":
        return data.read("textures", data_dir=textures_dir, examples=13)
    rng = np.random.default_rng(0)
    for i in range(13):
        image = rng.integers(0, 256, (30 - i, 20 + i, 3), "uint8")
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    return data.read(tmp_path)


def batches(stream, augmenter, count, strategy=None, **where):
    views = data.two_views(stream, augmenter, 4)
    strategy = strategy or distribution.strategy("none")
    source = views.training_batches(strategy, RGB)
    assert source[1:] == (STEPS, 4, 13, "uint8")
    where = {"seed": 3, "shuffle": True, "began": 0, "taken": 0} | where
    dataset = source.read(**where, done=0).take(count)
    return [np.stack(pair) for pair in dataset.as_numpy_iterator()]


@pytest.mark.slow
def test_order_and_views_depend_only_on_seed_and_pass(stream):
    augmenter = augmentations.crop_and_flip(8)
    both = batches(stream, augmenter, 2 * STEPS)
    assert both[0].shape == (2, 4, 8, 8, 3)
    # Read again, with another augmenter.
    again = batches(stream, augmentations.crop_and_flip(8), 2 * STEPS)
    np.testing.assert_array_equal(again, both)
    for began in (1, 3):  # the next pass
        rest = batches(stream, augmenter, STEPS, began=began)
        np.testing.assert_array_equal(rest, both[STEPS:])
    rest = batches(stream, augmenter, 4, taken=2)
    np.testing.assert_array_equal(rest, both[2:])
    other = batches(stream, augmenter, STEPS, seed=4)
    assert not np.array_equal(other, both[:STEPS])
    views = np.concatenate([*both], axis=1).reshape(2 * 2 * STEPS * 4, -1)
    assert len(np.unique(views, axis=0)) == len(views)


def test_every_pass_has_every_image_once(stream):
    def mark(image):
        return tf.cast(tf.reshape(image[:2, :2], (1, 12)), "float32")

    order = [batch[0, :, 0] for batch in batches(stream, mark, 2 * STEPS)]
    first, second = np.concatenate(order[:STEPS]), np.concatenate(order[STEPS:])
    assert len(np.unique(first, axis=0)) == len(np.unique(second, axis=0)) == 12
    assert not np.array_equal(first, second)
    images = [mark(x["image"])[0] for x in stream.dataset]
    unshuffled = batches(stream, mark, 2 * STEPS, shuffle=False)
    for half in unshuffled[:STEPS], unshuffled[STEPS:]:
        in_order = np.concatenate([batch[0, :, 0] for batch in half])
        np.testing.assert_array_equal(in_order, images[:12])


@pytest.mark.slow
def test_views_of_a_data_set_depend_only_on_seed_and_pass():
    """Not on how many are cut in parallel."""
    images = np.random.default_rng(0).integers(0, 256, (64, 9, 9, 3), "uint8")
    dataset = tf.data.Dataset.from_tensor_slices((images, np.arange(64)))

    def passes():
        keras.utils.set_random_seed(3)
        pairs = data.two_views(dataset, augmentations.moco_v2(8), 16)
        assert pairs.cardinality() == 4
        return [np.stack([np.stack(p) for p in pairs]) for _ in range(2)]

    first, second = passes()
    assert first.shape == (4, 2, 16, 8, 8, 3)
    np.testing.assert_array_equal(passes(), [first, second])
    both = np.stack([first, second]).reshape(2 * 2 * 64, -1)
    assert len(np.unique(both, axis=0)) == len(both)


def test_random_layers_must_belong_to_the_augmenter(stream):
    """Otherwise every image would get the same random numbers."""
    layer = augmentations.RandomHorizontalFlip()
    dataset = tf.data.Dataset.from_tensor_slices(
        np.zeros((8, 9, 9, 3), "uint8")
    )

    def flip(image):
        return layer(image)

    with pytest.raises(ValueError, match="holds its random layers.*function"):
        data.two_views(dataset, flip, 4)
    with pytest.raises(ValueError, match="holds its random layers"):
        batches(stream, flip, 1)


def test_views_of_a_data_set_by_a_function():
    """A function, unlike a layer, has no random states."""
    images = np.zeros((4, 9, 9, 3), "uint8")

    def cut(image):
        return tf.cast(image[:8, :8], "float32")

    dataset = tf.data.Dataset.from_tensor_slices(images)
    (pair,) = data.two_views(dataset, cut, 4)
    assert [x.shape for x in pair] == [(4, 8, 8, 3)] * 2


@pytest.mark.slow
# Neither branch of the accelerator knows the stream.
@pytest.mark.parametrize(
    ("accelerator", "stream"),
    [("cpu", "folder"), ("gpu", "tfds")],
    indirect=True,
)
@pytest.mark.usefixtures("accelerator")
def test_a_run_resumes_within_a_pass(stream, make_model, tmp_path):
    def train(epochs, folder, seed=2, **kwargs):
        keras.utils.set_random_seed(seed)
        model = make_model()
        model.fit(
            data.two_views(stream, augmentations.crop_and_flip(8), 4),
            epochs=epochs,
            callbacks=[Checkpoint(tmp_path / folder)],
            verbose=0,
            **kwargs,
        )
        return [v.numpy() for v in model.query_encoder.variables]

    whole = train(2, "whole", steps_per_epoch=2)
    train(1, "parts", steps_per_epoch=2)
    rest = train(2, "parts", seed=5, steps_per_epoch=2)
    for value, expected in zip(rest, whole, strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.usefixtures("accelerator")
def test_missing_files_are_named(tmp_path, make_model):
    for i in range(8):
        Image.new("RGB", (9, 9), color=i).save(tmp_path / f"{i}.png")
    views = data.two_views(data.read(tmp_path), augmentations.cifar(8), 4)
    model = make_model()
    for path in tmp_path.glob("*.png"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="stay where.*[0-7].png"):
        model.fit(views, verbose=0)


def test_a_full_batch_of_images_is_needed(stream):
    with pytest.raises(ValueError, match="batch_size=14, 13 images"):
        data.two_views(stream, augmentations.cifar(8), 14)
