"""Errors about images advise code, which is run here as it stands."""

import functools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import moco_keras
from moco_keras import augmentations, data, distribution
from moco_keras.data import checks, inputs
from moco_keras.evaluation import features
from moco_keras.pixel_format import RGB

# Other forms of images in [0, 255].
KINDS = {
    "float in [0, 1]": lambda x: x / np.float32(255),
    "float in [-1, 1]": lambda x: x / np.float32(127.5) - np.float32(1),
    "float in [0, 255]": lambda x: x.astype("float32"),
    "float16 in [0, 255]": lambda x: x.astype("float16"),
    "float64 in [0, 1]": lambda x: x / 255,
    "int64 in [0, 255]": lambda x: x.astype("int64"),
    "uint16 in [0, 255]": lambda x: x.astype("uint16"),
    "uint16 in [0, 65535]": lambda x: x * np.uint16(257),
    "int32 in [0, 65535]": lambda x: x * np.int32(257),
}


def batches(x):
    return tf.data.Dataset.from_tensor_slices(x).batch(8)


FORMS = {
    "array": lambda x: x,
    "tensor": tf.constant,
    "data set": batches,
    "labelled": lambda x: batches((x, np.zeros(len(x)))),
    "dicts": lambda x: batches({"image": x, "label": np.zeros(len(x))}),
    "labelled dicts": lambda x: batches(({"image": x}, np.zeros(len(x)))),
}


def advised(function, bad, of="", **names):
    """Runs the code that an error advises for pixels of one range."""
    with pytest.raises(ValueError, match="Images must be.*ass `") as caught:
        function(bad)
    advice = str(caught.value)
    if of:  # up to the next range
        advice = advice.partition(of)[2].partition("If pixels")[0]
    codes = re.findall("ass `([^`]+)`", advice)
    (name,) = names
    code = next(code for code in codes if name in code)
    return eval(code, {"np": np, "tf": tf, **names})


def pixels(given):
    if isinstance(given, tf.data.Dataset):
        given = np.concatenate([checks.unpack_images(x) for x in given])
    return np.asarray(given)


def train(x):
    """Runs the checks with which `fit` begins."""
    strategy = distribution.strategy("none")
    batch_size = None if isinstance(x, tf.data.Dataset) else 8
    inputs.training_batches(x, batch_size, strategy, RGB)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_advice_about_pixels(kind, form, images):
    images[0, 0, 0] = 0, 255, 128  # the whole range
    bad, name = FORMS[form](KINDS[kind](images)), "images"
    if isinstance(bad, tf.data.Dataset):
        name = "dataset"
    good = advised(train, bad, kind.split(" in ")[1], **{name: bad})
    np.testing.assert_array_equal(pixels(good), images)
    train(good)


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (lambda x: x[..., :1], lambda x: x[..., :1].repeat(3, axis=-1)),
        (lambda x: x[..., 0], lambda x: x[..., :1].repeat(3, axis=-1)),
        (lambda x: np.append(x, x[..., :1], axis=-1), lambda x: x),
        (lambda x: x > 127, lambda x: (x > 127) * np.uint8(255)),
    ],
    ids=["gray", "gray without channel", "alpha", "bool"],
)
@pytest.mark.parametrize("form", FORMS)
def test_advice_about_channels(bad, expected, form, images):
    bad, name = FORMS[form](bad(images)), "images"
    if isinstance(bad, tf.data.Dataset):
        name = "dataset"
    good = advised(train, bad, **{name: bad})
    np.testing.assert_array_equal(pixels(good), expected(images))
    train(good)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["array", "tensor", "data set", "labelled"])
@pytest.mark.parametrize("method", ["fit", "predict"])
def test_advised_images_train_and_predict(form, method, images, make_model):
    bad = FORMS[form](KINDS["float in [0, 1]"](images))
    name, batch_size = "dataset", None
    if form in ("array", "tensor"):
        name, batch_size = "images", 8
    function = functools.partial(
        getattr(make_model(), method), batch_size=batch_size, verbose=0
    )
    good = advised(function, bad, "[0, 1]", **{name: bad})
    np.testing.assert_array_equal(pixels(good), images)
    function(good)


def test_advice_about_a_single_image(images, make_model):
    model = make_model()
    image = images[0]
    good = advised(lambda x: model.predict(x, verbose=0), image, images=image)
    assert model.predict(good, verbose=0).shape == (1, 4)


def test_advice_about_a_data_set_without_batches(images):
    dataset = tf.data.Dataset.from_tensor_slices(images.repeat(16, axis=0))
    good = advised(train, dataset, dataset=dataset)
    assert next(iter(good)).shape == (256, 8, 8, 3)
    train(good)


def test_advice_about_unknown_shapes(images, make_model):
    """As tensors of `tf.py_function` have them."""

    def unknown(image):
        return tf.numpy_function(lambda x: x, [image], image.dtype)

    dataset = tf.data.Dataset.from_tensor_slices(images).map(unknown)
    words = r"not known. Set the .*lambda image, \*_: tf.ensure_shape\(image"
    with pytest.raises(ValueError, match=words):
        make_model().fit(dataset.batch(16))
    with pytest.raises(ValueError, match=words):
        data.two_views(dataset, lambda x: x, 4)
    with_labels = tf.data.Dataset.from_tensor_slices((images, np.arange(16)))
    with_labels = with_labels.map(lambda x, y: (x, unknown(y)))
    data.two_views(with_labels, lambda x: tf.cast(x, "float32"), 4)


@pytest.mark.parametrize("form", ["data set", "labelled", "dicts"])
def test_advice_about_images_to_cut_views_from(form, images):
    bad = FORMS[form](KINDS["uint16 in [0, 65535]"](images)).unbatch()

    def cut(dataset):
        return data.two_views(dataset, augmentations.cifar(8), 4)

    good = advised(cut, bad, "[0, 65535]", dataset=bad)
    np.testing.assert_array_equal(pixels(good.batch(4)), images)
    assert next(iter(cut(good)))[0].shape == (4, 8, 8, 3)


def stream_of(images):
    """A stream as `data.read` returns it, of any dtype and channels."""
    rows = tf.data.Dataset.range(len(images))
    decode = lambda i: {"image": tf.gather(images, i), "label": i}  # noqa: E731
    return data.ImageStream(lambda key: rows, decode, len(images), [], "mine")


@pytest.mark.parametrize(
    ("bad", "of"),
    [
        (lambda x: x * np.uint16(257), "[0, 65535]"),
        (lambda x: x[..., :1], "channel"),
    ],
)
def test_advice_about_streams(bad, of, images, monkeypatch):
    """An encoder of RGB cannot be trained on them, though they can be read."""
    strategy = distribution.strategy("none")

    def function(stream):
        views = data.two_views(stream, augmentations.cifar(8), 4)
        inputs.training_batches(views, None, strategy, RGB)

    images = images[..., :1].repeat(3, axis=-1)
    stream = stream_of(bad(images))
    monkeypatch.setattr(data, "read", lambda *args: stream)
    good = advised(function, stream, of, moco_keras=moco_keras)
    np.testing.assert_array_equal(pixels(good.batch(4)), images)


def test_advice_of_feature_extraction(images, make_model):
    model = make_model()
    bad = images.astype("float32")
    good = advised(lambda x: features.extract(model, x), bad, images=bad)
    np.testing.assert_array_equal(good, images)


def test_pixels_outside_every_range(images):
    normalized = (images - images.mean()) / images.std()
    with pytest.raises(ValueError, match="pixels from -1.*Undo what has moved"):
        train(normalized)


def test_a_model_called_on_a_symbolic_input(make_model):
    with pytest.raises(ValueError, match="dtype=float32. If pixels are in"):
        make_model()(keras.Input((8, 8, 3)))
