"""Augmentations of images of any number of channels and any range."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from moco_keras import augmentations as aug
from moco_keras.augmentations import color_ops, image_ops

pytestmark = pytest.mark.usefixtures("accelerator")

# Channels, type, and range of pixels.
KINDS = [
    (1, "uint8", None),
    (2, "int16", (-1000, 3000)),
    (5, "float32", (-0.5, 2)),
    (13, "uint16", (0, 10000)),
]


def draw(rng, count, channels, dtype, value_range, sides=(20, 24)):
    low, high = value_range or (0, 255)
    images = rng.uniform(low, high, (count, *sides, channels))
    return images.astype(dtype)


def changed(image, operation, value, low, high):
    """One operation on one image, channel by channel and pixel by pixel."""
    result = np.empty(image.shape)
    height, width, channels = image.shape
    for c in range(channels):
        mean = sum(float(x) for x in image[..., c].flat) / (height * width)
        for i in range(height):
            for j in range(width):
                x = float(image[i, j, c])
                if operation == "brightness":
                    x = low + value * (x - low)
                elif operation == "contrast":
                    x = mean + value * (x - mean)
                else:
                    part = min(max((x - low) / (high - low), 0), 1)
                    x = low + (high - low) * part**value
                result[i, j, c] = min(max(x, low), high)
    return result


@pytest.mark.parametrize(("channels", "dtype", "value_range"), KINDS)
def test_jitter_of_intensity(channels, dtype, value_range, rng):
    """In the order of each image, against loops."""
    images = draw(rng, 4, channels, dtype, value_range, (7, 6))
    bounds = tuple(map(float, value_range or (0, 255)))
    names = ("brightness", "contrast", "gamma")
    values = {n: rng.uniform(0.6, 1.4, 4).astype("float32") for n in names}
    orders = rng.permuted(np.tile(np.arange(3), (4, 1)), axis=1)
    places = np.argsort(orders, axis=1)
    places[3] = -1  # none is applied
    result = color_ops.intensity_jitter(
        tf.cast(images, "float32"), **values, places=places, bounds=bounds
    ).numpy()
    for i in range(4):
        image = images[i]
        for operation in orders[i] if i < 3 else ():
            name = names[operation]
            image = changed(image, name, float(values[name][i]), *bounds)
        np.testing.assert_allclose(
            result[i], image, rtol=0, atol=1e-5 * (bounds[1] - bounds[0])
        )


def test_channels_are_changed_by_themselves(rng):
    """As images of one channel, each by its own factors."""
    images = draw(rng, 3, 4, "float32", None, (6, 5))
    layer = aug.RandomIntensityJitter(per_channel=True, rate=0.7)
    draws = layer.get_random_transformation_batch(3, images=images)
    result = layer.augment_images(images, draws).numpy()
    draws = {name: np.asarray(value) for name, value in draws.items()}
    assert len({float(x) for x in draws["brightness"]}) == 12
    names = ("brightness", "contrast", "gamma")
    for i in range(3):
        for c in range(4):
            row = 4 * i + c
            channel = images[i, ..., c : c + 1]
            for operation in np.argsort(draws["places"][row]):
                if draws["apply"][row]:
                    name = names[operation]
                    value = float(draws[name][row])
                    channel = changed(channel, name, value, 0, 255)
            np.testing.assert_allclose(
                result[i, ..., c], channel[..., 0], atol=3e-3
            )


def test_dropped_channels_are_dark_and_one_always_stays(rng):
    images = draw(rng, 200, 3, "float32", (5, 9), (2, 2))
    layer = aug.RandomChannelDrop(0.8, value_range=(5, 9))
    result = layer(images).numpy()
    dark = (result == 5).all(axis=(1, 2))
    kept = (result == images).all(axis=(1, 2))
    assert (dark ^ kept).all()
    assert kept.any(axis=1).all()
    # All three are drawn in half of the images, and one of them stays.
    expected = 0.8 - 0.8**3 / 3
    assert dark.mean() == pytest.approx(expected, abs=0.06)
    assert (aug.RandomChannelDrop(0.0)(images) == images).numpy().all()


def test_right_angles(rng):
    images = draw(rng, 4, 2, "float32", None, (5, 5))
    result = image_ops.turn(images, np.arange(4)).numpy()
    for quarters in range(4):
        expected = np.rot90(images[quarters], quarters)
        np.testing.assert_array_equal(result[quarters], expected)
    layer = aug.RandomRightAngle()
    drawn = layer.get_random_transformation_batch(4000).numpy()
    counts = np.bincount(drawn, minlength=4)
    assert len(counts) == 4
    assert (abs(counts - 1000) < 150).all()


def test_turned_views_must_be_square(rng):
    assert isinstance(aug.gray(8, turns=True).layers[-1], aug.RandomRightAngle)
    with pytest.raises(ValueError, match="as high as wide. Received: 20 by 24"):
        aug.RandomRightAngle()(draw(rng, 2, 1, "uint8", None))


@pytest.mark.parametrize(
    ("pipeline", "channels", "dtype", "value_range"),
    [
        (aug.gray, *KINDS[0]),
        (aug.multichannel, *KINDS[1]),
    ],
)
def test_views_stay_in_their_range(pipeline, channels, dtype, value_range, rng):
    """In the model and in tf.data, of a batch and of an image of any size."""
    images = draw(rng, 16, channels, dtype, value_range)
    low, high = value_range or (0, 255)
    keras.utils.set_random_seed(3)
    augment = pipeline(16, value_range=value_range, turns=True)
    first, second = augment(images).numpy(), augment(images).numpy()
    assert first.shape == (16, 16, 16, channels)
    assert first.dtype == np.float32
    assert low <= first.min() <= first.max() <= high
    assert (first != second).any(axis=(1, 2, 3)).all()
    keras.utils.set_random_seed(3)
    dataset = tf.data.Dataset.from_tensors(images)
    augment = pipeline(16, value_range=value_range, turns=True)
    in_data = next(iter(dataset.map(augment))).numpy()
    scale = high - low
    np.testing.assert_allclose(
        (in_data - low) / scale, (first - low) / scale, rtol=1e-4, atol=1e-5
    )
    one = tf.TensorSpec((None, None, channels), dtype)
    traced = tf.function(augment, input_signature=[one])
    view = traced(images[0, :13]).numpy()
    assert view.shape == (16, 16, channels)
    assert low <= view.min() <= view.max() <= high


def test_gray_images_in_one_channel_and_in_three(rng):
    """Crop, brightness, contrast, blur and flip do the same to both."""
    gray = rng.uniform(0, 255, (6, 20, 24, 1)).astype("float32")
    rgb = np.repeat(gray, 3, axis=-1)
    factors = rng.uniform(0.6, 1.4, (2, 6)).astype("float32")
    ones, zeros = np.ones(6, "float32"), np.zeros(6, "float32")
    apply = rng.uniform(size=6) < 0.5
    sigma = rng.uniform(0.1, 1, 6).astype("float32")
    box = {
        "top": zeros,
        "left": 2 * ones,
        "height": 12 * factors[0],
        "width": 13 * ones,
    }
    places = np.tile([0, 1], (6, 1))

    def one(images):
        return color_ops.intensity_jitter(
            images,
            *factors,
            gamma=ones,
            places=np.pad(places, [(0, 0), (0, 1)], constant_values=2),
            bounds=(0.0, 255.0),
        )

    def three(images):
        return color_ops.jitter(
            images,
            *factors,
            saturation=ones,
            hue=zeros,
            places=np.pad(places, [(0, 0), (0, 2)], constant_values=-1),
            bounds=(0.0, 255.0),
        )

    def others(images):
        images = image_ops.crop_and_resize(images, (9, 8), **box)
        images = image_ops.gaussian_blur(images, apply, sigma, 1.0)
        return image_ops.horizontal_flip(images, apply)

    np.testing.assert_allclose(
        others(rgb), np.repeat(others(gray), 3, axis=-1), atol=1e-4
    )
    # Luma's weights add up to 0.9999, which moves the mean of a contrast.
    np.testing.assert_allclose(
        three(rgb), np.repeat(one(gray), 3, axis=-1), atol=0.02
    )


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("pipeline", [aug.moco_v1, aug.moco_v2, aug.cifar])
def test_what_needs_color_is_refused(pipeline, channels, rng):
    images = draw(rng, 2, channels, "uint8", None)
    with pytest.raises(ValueError, match="augmentations.gray") as caught:
        pipeline(8)(images)
    assert f"{channels} channels" in str(caught.value)


def test_color_in_another_range_is_the_same_color(rng):
    """RGB in 16 bits has the views of 8 bits, on its own scale."""
    images = rng.integers(0, 256, (8, 20, 24, 3), "uint8")
    for pipeline in (aug.moco_v1, aug.moco_v2, aug.cifar):
        keras.utils.set_random_seed(3)
        expected = pipeline(8)(images).numpy()
        keras.utils.set_random_seed(3)
        wide = pipeline(8, value_range=(0, 65535))
        found = wide(images * np.uint16(257)).numpy()
        np.testing.assert_allclose(found / 257, expected, atol=0.01)
    keras.utils.set_random_seed(3)
    expected = aug.RandomSolarize(1.0)(images).numpy()
    solarize = aug.RandomSolarize(1.0, value_range=(0, 65535))
    found = solarize(images * np.uint16(257)).numpy()
    np.testing.assert_array_equal(found, 257 * expected)


@pytest.mark.parametrize(
    "layer",
    [
        aug.RandomIntensityJitter(0.1, 0.2, 0.3, 0.4, True, value_range=(1, 9)),
        aug.RandomChannelDrop(0.3, value_range=(-1, 1)),
        aug.RandomRightAngle(),
        aug.RandomColorJitter(value_range=(0, 4095)),
        aug.RandomResizedCrop((8, 16)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_are_saved(layer):
    saved = keras.saving.serialize_keras_object(layer)
    loaded = keras.saving.deserialize_keras_object(saved)
    assert loaded.get_config() == layer.get_config()


@pytest.mark.parametrize("sides", [(8, 16), (12, 6)])
def test_views_need_not_be_square(sides, rng):
    images = rng.integers(0, 256, (3, 20, 24, 3), "uint8")
    assert aug.moco_v2(sides)(images).shape == (3, *sides, 3)
    evaluation = aug.evaluation(sides)
    found = evaluation(images).numpy()
    height, width = sides
    cut_height = min(20, 24 * height / width) * 7 / 8
    cut_width = cut_height * width / height
    box = (
        (24 - cut_width) / 2,
        (20 - cut_height) / 2,
        (24 + cut_width) / 2,
        (20 + cut_height) / 2,
    )
    from PIL import Image

    for image, got in zip(images, found, strict=True):
        expected = Image.fromarray(image).resize(
            (width, height), Image.Resampling.BILINEAR, box
        )
        np.testing.assert_allclose(got, np.asarray(expected), atol=1.01)
    assert (evaluation(found).numpy() == found).all()
    crop = aug.moco_v2(sides).layers[0]
    assert crop.ratio == pytest.approx(
        (3 / 4 * width / height, 4 / 3 * width / height)
    )


@pytest.mark.parametrize("given", [(8,), (8, 0), (8, 8, 3), "8", 8.5])
def test_sizes_must_be_one_number_or_two(given):
    with pytest.raises(ValueError, match="`image_size` must be"):
        aug.RandomResizedCrop(given)


@pytest.mark.parametrize("given", [(0, 0), (2, 1), 255, (0, np.nan)])
def test_ranges_must_be_two_numbers_in_order(given):
    with pytest.raises(ValueError, match="`value_range` must be"):
        aug.gray(8, value_range=given)
