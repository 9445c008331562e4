"""Views of another size than the images that an encoder is made for."""

import keras
import numpy as np
import pytest

import moco_keras
from moco_keras import MoCo, augmentations, callbacks, features, optimizers
from moco_keras.models import derived

pytestmark = pytest.mark.usefixtures("shallow_networks")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (32, 12, 12, 3), "uint8")


def build(image_size, view_size=None, **kwargs):
    """A model of fixed weights whose views have eight pixels."""
    keras.utils.set_random_seed(0)
    encoder = moco_keras.build_encoder(
        "resnet18", image_size, 4, width=2, bn_splits=2, **kwargs
    )
    augmenter = augmentations.crop_and_flip(8)
    model = MoCo(encoder, augmenter, queue_size=32, view_size=view_size)
    model.compile(optimizer=optimizers.SGD(0.1))
    return model


@pytest.mark.parametrize(
    "kwargs",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"value_range": (-10, 300)}, marks=pytest.mark.slow),
        {"value_range": (0, 255), "mean": [0.5] * 3, "std": [0.1, 0.2, 0.3]},
    ],
)
def test_it_trains_as_an_encoder_for_images_of_that_size(kwargs):
    """To the bit, in training, in evaluation and in what is measured."""
    model, other = build(12, 8, **kwargs), build(8, **kwargs)
    found = []
    for each in (model, other):
        monitor = callbacks.HealthMonitor(IMAGES)
        history = each.fit(
            IMAGES,
            batch_size=8,
            epochs=2,
            validation_data=IMAGES,
            callbacks=[monitor],
            verbose=0,
        )
        found.append(history.history)
    assert found[0] == found[1]
    for v, w in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(v, w, err_msg=v.path)


def test_all_but_training_takes_images_of_the_encoder(tmp_path):
    model = build(12, (8, 8))
    model.fit(IMAGES, batch_size=8, verbose=0)
    whole = build(12)  # with the trained weights
    whole.query_encoder.set_weights(model.query_encoder.get_weights())
    np.testing.assert_array_equal(
        model.predict(IMAGES, verbose=0), whole.predict(IMAGES, verbose=0)
    )
    np.testing.assert_array_equal(
        features.extract(model, IMAGES), features.extract(whole, IMAGES)
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.query_encoder.input_shape == (None, 12, 12, 3)
    for each in (model, loaded):
        each.fit(IMAGES, batch_size=8, verbose=0, shuffle=False)
    for v, w in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(v, w, err_msg=v.path)
    moco_keras.export_encoder(model, tmp_path / "encoder")


def test_a_model_of_keras_may_take_views_of_another_size():
    """One that does not normalize, and one whose weights have one size."""
    inputs = keras.Input((12, 12, 3))
    x = keras.layers.Conv2D(4, 3)(inputs)
    pooled = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    views = RNG.uniform(0, 255, (4, 8, 8, 3)).astype("float32")
    small = derived.of_size(pooled, 8)
    expected = keras.layers.GlobalAveragePooling2D()(pooled.layers[1](views))
    np.testing.assert_array_equal(small(views), expected)
    assert [id(w) for w in small.weights] == [id(w) for w in pooled.weights]
    shifted = keras.layers.Lambda(lambda x: x + 1)(inputs)  # before it
    named = keras.layers.Rescaling(2.0, name="normalization")(shifted)
    first = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(named))
    np.testing.assert_allclose(
        derived.of_size(first, 8)(views),
        2 * (views.mean((1, 2)) + 1),
        rtol=1e-5,
    )
    flat = keras.layers.Dense(4)(keras.layers.Flatten()(x))
    with pytest.raises(ValueError, match="must take images of any size"):
        MoCo(keras.Model(inputs, flat), queue_size=8, view_size=8)


def test_views_of_any_other_size_are_refused():
    with pytest.raises(ValueError, match=r"views of shape \(12, 12, 3\)"):
        build(12).fit(IMAGES, batch_size=8, verbose=0)
    model = build(12, 9)
    with pytest.raises(ValueError, match=r"\(9, 9, 3\).*`view_size`"):
        model.fit(IMAGES, batch_size=8, verbose=0)
    with pytest.raises(ValueError, match="view_size"):
        build(12, 0)
