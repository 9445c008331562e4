import colorsys

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

from moco_keras import augmentations as aug
from moco_keras import image_ops

PIPELINES = [aug.moco_v1, aug.moco_v2, aug.cifar]


@pytest.fixture
def pictures(rng):
    return rng.integers(0, 256, (64, 20, 24, 3), "uint8")


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_views_are_random_for_each_image(pipeline, pictures):
    same = np.repeat(pictures[:1], 64, axis=0)
    augment = pipeline(16)
    first, second = augment(same).numpy(), augment(same).numpy()
    assert first.shape == (64, 16, 16, 3)
    assert first.dtype == np.float32
    assert first.min() >= 0
    assert first.max() <= 255
    for views in (first, second):
        assert len(np.unique(views.reshape(64, -1), axis=0)) == 64
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_views_in_tf_data_are_those_in_a_model(pipeline, pictures):
    keras.utils.set_random_seed(3)
    inside = pipeline(16)(pictures).numpy()
    keras.utils.set_random_seed(3)
    dataset = tf.data.Dataset.from_tensors(pictures).map(pipeline(16))
    np.testing.assert_allclose(
        next(iter(dataset)).numpy(), inside, rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize(
    ("pipeline", "order"),
    [
        (
            aug.moco_v1,
            "RandomResizedCrop RandomGrayscale RandomColorJitter "
            "RandomHorizontalFlip",
        ),
        (
            aug.moco_v2,
            "RandomResizedCrop RandomColorJitter RandomGrayscale "
            "RandomGaussianBlur RandomHorizontalFlip",
        ),
        (
            aug.cifar,
            "RandomResizedCrop RandomHorizontalFlip RandomColorJitter "
            "RandomGrayscale",
        ),
    ],
)
def test_order_is_the_papers(pipeline, order):
    names = [type(layer).__name__ for layer in pipeline().layers]
    assert names == order.split()


def test_jitter_of_v1_is_stronger_and_constant():
    v1, v2 = aug.moco_v1().layers[2], aug.moco_v2().layers[1]
    assert (v1.rate, v1.hue) == (1.0, 0.4)
    assert (v2.rate, v2.hue) == (0.8, 0.1)
    assert v1.brightness == v1.contrast == v1.saturation == 0.4


def test_blur_is_as_wide_a_part_of_the_picture_at_any_size():
    assert aug.moco_v2(224).layers[3].sigma == (0.1, 2.0)
    assert aug.moco_v2(112).layers[3].sigma == (0.05, 1.0)


def test_crops_follow_scale_and_ratio():
    layer = aug.RandomResizedCrop(8, scale=(0.2, 0.6))
    crop = layer.get_random_transformation_batch(
        4000, images=tf.zeros((4000, 100, 120, 3))
    )
    crop = {name: value.numpy() for name, value in crop.items()}
    area = crop["height"] * crop["width"] / 12000
    ratio = crop["width"] / crop["height"]
    assert area.min() > 0.19
    assert area.max() < 0.61
    assert area.mean() == pytest.approx(0.4, abs=0.01)
    assert ratio.min() > 0.73
    assert ratio.max() < 1.36
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.02)
    assert (crop["top"] >= 0).all()
    assert (crop["top"] + crop["height"] <= 100).all()
    assert (crop["left"] + crop["width"] <= 120).all()
    for value in crop.values():
        np.testing.assert_array_equal(value, np.round(value))


def test_a_crop_that_fits_nowhere_is_the_centre():
    layer = aug.RandomResizedCrop(8, scale=(1.0, 1.0))
    crop = layer.get_random_transformation_batch(
        3, images=tf.zeros((3, 10, 40, 3))
    )
    crop = {name: value.numpy().tolist() for name, value in crop.items()}
    assert crop["height"] == [10] * 3
    assert crop["width"] == [13] * 3
    assert crop["left"] == [13] * 3
    assert crop["top"] == [0] * 3


@pytest.mark.parametrize(
    ("start", "length", "out"), [(0, 12, 12), (3, 6, 9), (2, 10, 4), (5, 7, 3)]
)
def test_resize_is_the_triangle_filter(start, length, out, rng):
    images = rng.uniform(0, 255, (2, 12, 12, 3)).astype("float32")
    box = [tf.constant([float(v)] * 2) for v in (start, start, length, length)]
    result = image_ops.crop_and_resize(images, out, *box).numpy()
    rows = np.apply_along_axis(
        reference.triangle_resize, 1, images, start, length, out
    )
    expected = np.apply_along_axis(
        reference.triangle_resize, 2, rows, start, length, out
    )
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-3)


def one_jitter(image, operation, value):
    """torchvision's definition of one operation, on one image."""
    image = image.astype("float64")
    gray = image @ [0.2989, 0.587, 0.114]
    if operation == "brightness":
        return np.clip(value * image, 0, 255)
    if operation == "contrast":
        return np.clip(value * image + (1 - value) * gray.mean(), 0, 255)
    if operation == "saturation":
        return np.clip(value * image + (1 - value) * gray[..., None], 0, 255)

    def turn(pixel):
        h, s, v = colorsys.rgb_to_hsv(*pixel / 255)
        return np.array(colorsys.hsv_to_rgb((h + value) % 1, s, v)) * 255

    return np.apply_along_axis(turn, 2, image)


@pytest.mark.parametrize("seed", range(6))
def test_jitter_is_torchvisions_in_each_images_order(seed, pictures):
    rng = np.random.default_rng(seed)
    images = pictures[:8].astype("float32")
    names = ("brightness", "contrast", "saturation", "hue")
    values = {n: rng.uniform(0.6, 1.4, 8).astype("float32") for n in names[:3]}
    values["hue"] = rng.uniform(-0.4, 0.4, 8).astype("float32")
    orders = rng.permuted(np.tile(np.arange(4), (8, 1)), axis=1)
    places = np.argsort(orders, axis=1)
    result = image_ops.jitter(images, **values, places=places).numpy()
    for image, order, got, i in zip(
        images, orders, result, range(8), strict=True
    ):
        for operation in order:
            name = names[operation]
            image = one_jitter(image, name, float(values[name][i]))
        np.testing.assert_allclose(got, image, atol=0.05)


def test_jitter_orders_are_all_equally_likely():
    draws = aug.RandomColorJitter().get_random_transformation_batch(12000)
    places = draws["places"].numpy()
    orders, counts = np.unique(places, axis=0, return_counts=True)
    assert len(orders) == 24
    assert ((counts - 500) ** 2 / 500).sum() < 49.7  # chi-square, p = 0.001


@pytest.mark.parametrize(
    ("layer", "changed"),
    [
        (aug.RandomHorizontalFlip(), lambda x: x[:, :, ::-1]),
        (
            aug.RandomGrayscale(),
            lambda x: np.repeat(x @ [[0.2989], [0.587], [0.114]], 3, axis=3),
        ),
    ],
)
def test_each_image_is_changed_or_left(layer, changed, rng):
    images = rng.uniform(0, 255, (1000, 4, 4, 3)).astype("float32")
    views = layer(images).numpy()
    left = np.isclose(views, images).all(axis=(1, 2, 3))
    done = np.isclose(views, changed(images), atol=1e-2).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(left, ~done)
    assert done.mean() == pytest.approx(layer.rate, abs=0.05)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_blur_is_a_gaussian_with_repeated_edges(sigma, rng):
    images = rng.uniform(0, 255, (1, 16, 12, 3)).astype("float32")
    blurred = image_ops.gaussian_blur(images, tf.constant([sigma]), 2.0).numpy()
    offsets = np.arange(-6, 7)
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = np.pad(images[0], ((6, 6), (6, 6), (0, 0)), mode="edge")
    expected = sum(
        kernel[i] * kernel[j] * padded[i : i + 16, j : j + 12]
        for i in range(13)
        for j in range(13)
    )
    np.testing.assert_allclose(blurred[0], expected, rtol=1e-4, atol=1e-2)


def test_evaluation_leaves_images_of_its_size(pictures):
    square = pictures[:, :16, :16]
    np.testing.assert_array_equal(aug.evaluation(16)(square), square)


def test_evaluation_cuts_the_centre(rng):
    image = np.zeros((1, 32, 64, 3), "uint8")
    image[:, 2:30, 18:46] = 200  # the centred square of 7/8 of the shorter side
    np.testing.assert_allclose(aug.evaluation(14)(image), 200)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_saved_and_loaded(pipeline, pictures):
    config = keras.saving.serialize_keras_object(pipeline(16))
    loaded = keras.saving.deserialize_keras_object(config)
    assert loaded(pictures).shape == (64, 16, 16, 3)
    originals = pipeline(16).layers
    for a, b in zip(originals, loaded.layers, strict=True):
        ignored = {"name": None, "seed": None}
        assert {**a.get_config(), **ignored} == {**b.get_config(), **ignored}
