import keras
import numpy as np
import pytest
import pytorch
import reference
import tensorflow as tf

from moco_keras import augmentations as aug

pytestmark = pytest.mark.usefixtures("accelerator")

PIPELINES = [aug.moco_v1, aug.moco_v2, aug.cifar, aug.crop_and_flip]


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
def test_views_in_tf_data_equal_those_in_a_model(pipeline, pictures):
    keras.utils.set_random_seed(3)
    inside = pipeline(16)(pictures).numpy()
    keras.utils.set_random_seed(3)
    dataset = tf.data.Dataset.from_tensors(pictures).map(pipeline(16))
    np.testing.assert_allclose(
        next(iter(dataset)).numpy(), inside, rtol=1e-4, atol=1e-3
    )


def crop(size, min_area):
    scale, ratio = (min_area, 1.0), (3 / 4, 4 / 3)
    sizes = {"image_size": size, "scale": scale, "ratio": ratio}
    return ("RandomResizedCrop", sizes)


def jitter(rate, hue):
    factors = dict.fromkeys(("brightness", "contrast", "saturation"), 0.4)
    own = {"hue": hue, "rate": rate, "value_range": None}
    return ("RandomColorJitter", {**factors, **own})


GRAYSCALE = ("RandomGrayscale", {"rate": 0.2})
FLIP = ("RandomHorizontalFlip", {"rate": 0.5})
BLUR = ("RandomGaussianBlur", {"sigma": (0.1, 2.0), "rate": 0.5})


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        (
            aug.moco_v1,
            [crop(224, 0.2), GRAYSCALE, jitter(1.0, hue=0.4), FLIP],
        ),
        (
            aug.moco_v2,
            [crop(224, 0.2), jitter(0.8, hue=0.1), GRAYSCALE, BLUR, FLIP],
        ),
        (aug.cifar, [crop(32, 0.08), FLIP, jitter(0.8, hue=0.1), GRAYSCALE]),
        # torchvision's RandomResizedCrop(224) and RandomHorizontalFlip().
        (aug.crop_and_flip, [crop(224, 0.08), FLIP]),
    ],
)
def test_pipelines_match_the_papers(pipeline, expected):
    of_any_layer = keras.layers.Layer().get_config().keys() | {"seed"}
    operations = [
        (
            type(layer).__name__,
            {
                name: value
                for name, value in layer.get_config().items()
                if name not in of_any_layer
            },
        )
        for layer in pipeline().layers
    ]
    assert operations == expected


def test_a_single_image_of_any_size_has_a_known_shape_afterwards():
    sizes = tf.TensorSpec((None, None, 3), "uint8")
    for make in (aug.crop_and_flip, aug.evaluation):
        augment = tf.function(make(8), input_signature=[sizes])
        assert augment.get_concrete_function().output_shapes == (8, 8, 3)


def test_blur_scales_with_the_image_size():
    assert aug.moco_v2(224).layers[3].sigma == (0.1, 2.0)
    assert aug.moco_v2(112).layers[3].sigma == (0.05, 1.0)


def test_a_crop_that_does_not_fit_is_centered():
    layer = aug.RandomResizedCrop(8, scale=(1.0, 1.0))
    crop = layer.get_random_transformation_batch(
        3, images=tf.zeros((3, 10, 40, 3))
    )
    crop = {name: value.numpy().tolist() for name, value in crop.items()}
    assert crop["height"] == [10] * 3
    assert crop["width"] == [13] * 3
    assert crop["left"] == [13] * 3
    assert crop["top"] == [0] * 3


def drawn(layer, count, **kwargs):
    draws = layer.get_random_transformation_batch(count, **kwargs)
    return {name: np.asarray(value) for name, value in draws.items()}


DRAWS = pytorch.load("draws")
SIDES = ("top", "left", "height", "width")


@pytest.mark.parametrize(
    ("case", "height", "width", "scale"),
    [
        ("cifar", 32, 32, (0.08, 1.0)),
        ("imagenet", 375, 500, (0.2, 1.0)),
        ("panorama", 20, 60, (0.5, 1.0)),
    ],
)
def test_crops_are_drawn_like_torchvisions(case, height, width, scale):
    theirs = dict(zip(SIDES, DRAWS[f"crop/{case}"].T, strict=True))
    layer = aug.RandomResizedCrop(8, scale=scale)
    images = tf.zeros((1, height, width, 3))  # only their size matters
    ours = drawn(layer, 10_000, images=images)
    for crop in (ours, theirs):
        crop["width"] = crop["width"].astype("float64")
        crop["area"] = crop["height"] * crop["width"]
        crop["ratio"] = crop["width"] / crop["height"]
        crop["place"] = (crop["left"] + 0.5) / (width - crop["width"] + 1)
    for name, values in theirs.items():
        assert reference.kolmogorov_smirnov(ours[name], values) < 1, name
    assert (ours["top"] + ours["height"] <= height).all()
    assert (ours["left"] + ours["width"] <= width).all()
    for name in SIDES:
        np.testing.assert_array_equal(ours[name], np.round(ours[name]))


def test_jitter_is_drawn_like_torchvisions():
    ours = drawn(aug.RandomColorJitter(), 10_000)
    names = ("brightness", "contrast", "saturation", "hue")
    for name, theirs in zip(names, DRAWS["jitter/factors"].T, strict=True):
        assert reference.kolmogorov_smirnov(ours[name], theirs) < 1, name
    # Theirs lists the operation at each place, ours each operation's place.
    orders, counts = np.unique(
        np.argsort(ours["places"], axis=1), axis=0, return_counts=True
    )
    np.testing.assert_array_equal(orders, DRAWS["jitter/orders"])
    # 49.7 is the critical value of 23 degrees of freedom at 0.001.
    assert reference.chi_square(counts, DRAWS["jitter/counts"]) < 49.7


def test_jitter_above_1_is_drawn_from_0():
    layer = aug.RandomColorJitter(brightness=1.5, contrast=1.5, saturation=3)
    draws = drawn(layer, 1000)
    for name, most in (
        ("brightness", 2.5),
        ("contrast", 2.5),
        ("saturation", 4),
    ):
        assert 0 <= draws[name].min() < 0.1
        assert most - 0.1 < draws[name].max() <= most


def test_hue_of_v1_is_drawn_like_torchvisions():
    ours = drawn(aug.moco_v1().layers[2], 10_000)["hue"]
    assert reference.kolmogorov_smirnov(ours, DRAWS["hue_of_v1"]) < 1


def test_blur_is_drawn_like_torchvisions():
    ours = drawn(aug.RandomGaussianBlur(), 10_000)["sigma"]
    assert reference.kolmogorov_smirnov(ours, DRAWS["sigma"]) < 1


@pytest.mark.parametrize(
    ("case", "make_layer"),
    [
        ("flip", aug.RandomHorizontalFlip),
        ("grayscale", aug.RandomGrayscale),
        ("jitter", aug.RandomColorJitter),
        ("jitter_of_v1", lambda: aug.moco_v1().layers[2]),
        # Wide enough to show.
        ("blur", lambda: aug.RandomGaussianBlur(sigma=(1.0, 1.0))),
        ("solarize", aug.RandomSolarize),
    ],
)
def test_operations_apply_as_often_as_torchvisions(case, make_layer, rng):
    layer = make_layer()  # made here, where the seed is set
    image = rng.uniform(0, 255, (4, 4, 3)).astype("float32")
    images = np.stack([image] * 10_000)
    changed = ~np.isclose(layer(images), images, atol=1e-2).all(axis=(1, 2, 3))
    ours, theirs = changed.sum(), DRAWS[f"changed/{case}"]
    # 10.8 is the critical value of 1 degree of freedom at 0.001.
    counts = (ours, 10_000 - ours), (theirs, 10_000 - theirs)
    assert reference.chi_square(*counts) < 10.8


@pytest.mark.parametrize(
    ("make_layer", "changed"),
    [
        (aug.RandomHorizontalFlip, lambda x: x[:, :, ::-1]),
        (
            aug.RandomGrayscale,
            lambda x: np.repeat(x @ [[0.2989], [0.587], [0.114]], 3, axis=3),
        ),
    ],
)
def test_each_image_is_changed_or_left(make_layer, changed, rng):
    layer = make_layer()
    images = rng.uniform(0, 255, (1000, 4, 4, 3)).astype("float32")
    views = layer(images).numpy()
    left = np.isclose(views, images).all(axis=(1, 2, 3))
    done = np.isclose(views, changed(images), atol=1e-2).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(left, ~done)
    assert done.mean() == pytest.approx(layer.rate, abs=0.05)


def test_evaluation_keeps_images_of_its_size(pictures):
    square = pictures[:, :16, :16]
    np.testing.assert_array_equal(aug.evaluation(16)(square), square)
    spec = tf.TensorSpec((None, None, None, 3), square.dtype)
    unaware = tf.function(aug.evaluation(16), input_signature=[spec])
    np.testing.assert_array_equal(unaware(square), square)


def test_evaluation_cuts_the_center(rng):
    image = np.zeros((1, 32, 64, 3), "uint8")
    image[:, 2:30, 18:46] = 200  # the center: 7/8 of the shorter side
    np.testing.assert_allclose(aug.evaluation(14)(image), 200, rtol=1e-6)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_saved_and_loaded(pipeline, pictures):
    config = keras.saving.serialize_keras_object(pipeline(16))
    loaded = keras.saving.deserialize_keras_object(config)
    assert loaded(pictures).shape == (64, 16, 16, 3)
    originals = pipeline(16).layers
    for a, b in zip(originals, loaded.layers, strict=True):
        ignored = {"name": None, "seed": None}
        assert {**a.get_config(), **ignored} == {**b.get_config(), **ignored}
