"""Image operations, compared with torchvision, PIL and definitions."""

import colorsys
from functools import partial

import numpy as np
import pytest
import pytorch
import tensorflow as tf

from moco_keras.augmentations import color_ops, image_ops

pytestmark = pytest.mark.usefixtures("accelerator")

FIXTURE = pytorch.load("operations")
PICTURES = 255 * FIXTURE["images"]  # float32 (4, 24, 20, 3)
BOUNDS = 0.0, 255.0
NEUTRAL = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}


def cases(operation):
    """Parameters of an operation, and torchvision's result in [0, 255]."""
    return [
        pytest.param(*parameters.split(), 255 * result, id=parameters)
        for parameters, result in pytorch.part(FIXTURE, operation).items()
    ]


def assert_close(result, expected, levels=0.01):
    """Compares images in [0, 255]."""
    np.testing.assert_allclose(result, expected, rtol=0, atol=levels)


def jitter(images, **values):
    values = {**NEUTRAL, **values}
    values = {n: np.full(len(images), v, "float32") for n, v in values.items()}
    places = np.tile(np.arange(4), (len(images), 1))
    return color_ops.jitter(images, **values, places=places, bounds=BOUNDS)


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("flip", image_ops.horizontal_flip),
        ("grayscale", color_ops.grayscale),
        (
            "solarize",
            partial(color_ops.solarize, threshold=128.0, bounds=BOUNDS),
        ),
    ],
)
def test_operations_without_parameters(name, operation):
    expected = np.broadcast_to(255 * FIXTURE[name], PICTURES.shape)
    assert_close(operation(PICTURES, np.ones(4, bool)), expected)
    np.testing.assert_array_equal(
        operation(PICTURES, np.zeros(4, bool)), PICTURES
    )


@pytest.mark.parametrize(("factor", "expected"), cases("brightness"))
def test_brightness(factor, expected):
    assert_close(jitter(PICTURES, brightness=float(factor)), expected)


@pytest.mark.parametrize(("factor", "expected"), cases("contrast"))
def test_contrast(factor, expected):
    assert_close(jitter(PICTURES, contrast=float(factor)), expected)


@pytest.mark.parametrize(("factor", "expected"), cases("saturation"))
def test_saturation(factor, expected):
    assert_close(jitter(PICTURES, saturation=float(factor)), expected)


@pytest.mark.parametrize(("turns", "expected"), cases("hue"))
def test_hue(turns, expected):
    assert_close(jitter(PICTURES, hue=float(turns)), expected)


@pytest.mark.parametrize(
    ("top", "left", "height", "width", "size", "expected"), cases("crop")
)
def test_crop_and_resize(top, left, height, width, size, expected):
    box = (np.full(4, v, "float32") for v in (top, left, height, width))
    result = image_ops.crop_and_resize(PICTURES, 2 * (int(size),), *box)
    assert_close(result, expected)


@pytest.mark.parametrize(
    ("top", "left", "height", "width", "size", "expected"), cases("crop")
)
def test_crop_and_resize_of_an_image_of_unknown_size(
    top, left, height, width, size, expected
):
    box = [np.full(1, v, "float32") for v in (top, left, height, width)]

    @tf.function(input_signature=[tf.TensorSpec((1, None, None, 3))])
    def crop(image):
        return image_ops.crop_and_resize(image, 2 * (int(size),), *box)

    for image, result in zip(PICTURES, expected, strict=True):
        assert_close(crop(image[None])[0], result)


def test_fractional_boxes_need_no_known_size(rng):
    image = rng.uniform(0, 255, (1, 40, 50, 3)).astype("float32")
    box = [np.array([v], "float32") for v in (2.5, 7.25, 35, 30.5)]

    @tf.function(input_signature=[tf.TensorSpec((1, None, None, 3))])
    def crop(image):
        return image_ops.crop_and_resize(image, (16, 16), *box)

    assert_close(crop(image), image_ops.crop_and_resize(image, (16, 16), *box))


def blur(images, sigma):
    return image_ops.gaussian_blur(
        images,
        apply=tf.constant([True]),
        sigma=tf.constant([sigma]),
        max_sigma=2.0,
    ).numpy()


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_matches_pil(sigma):
    fixture = pytorch.load("blur")
    picture = fixture["picture"][None].astype("float32")
    blurred = blur(picture, sigma)
    # PIL approximates the Gaussian by boxes, and rounds.
    errors = np.abs(blurred[0] - fixture[str(sigma)])
    assert errors.mean() < 1


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_blur_is_a_gaussian_with_repeated_edges(sigma, rng):
    images = rng.uniform(0, 255, (1, 16, 12, 3)).astype("float32")
    blurred = blur(images, sigma)
    offsets = np.arange(-6, 7)
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = np.pad(images[0], ((6, 6), (6, 6), (0, 0)), mode="edge")
    expected = sum(
        kernel[i] * kernel[j] * padded[i : i + 16, j : j + 12]
        for i in range(13)
        for j in range(13)
    )
    assert_close(blurred[0], expected)


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
def test_jitter_matches_torchvision_in_each_images_order(seed, rng):
    rng = np.random.default_rng(seed)
    images = PICTURES[[0, 1, 2, 3] * 2]
    names = ("brightness", "contrast", "saturation", "hue")
    values = {n: rng.uniform(0.6, 1.4, 8).astype("float32") for n in names[:3]}
    values["hue"] = rng.uniform(-0.4, 0.4, 8).astype("float32")
    orders = rng.permuted(np.tile(np.arange(4), (8, 1)), axis=1)
    places = np.argsort(orders, axis=1)
    result = color_ops.jitter(
        images, **values, places=places, bounds=BOUNDS
    ).numpy()
    for image, order, got, i in zip(
        images, orders, result, range(8), strict=True
    ):
        for operation in order:
            name = names[operation]
            image = one_jitter(image, name, float(values[name][i]))
        np.testing.assert_allclose(got, image, atol=0.05)
