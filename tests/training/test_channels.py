"""Images of any number of channels, type and range, from array to export."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import without_keras

import moco_keras
from moco_keras import augmentations, callbacks, data, features, pixel_format

KINDS = {
    "gray": (1, "uint8", None, 0, 256),
    "satellite": (13, "uint16", (0, 10_000), 0, 10_001),
    "scanner": (2, "int16", (-1024, 3071), -1024, 3072),
    "measured": (5, "float32", (-0.5, 2.0), -0.5, 2.0),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def draw(kind, count=16, sides=(8, 8)):
    channels, dtype, _, low, high = kind
    rng = np.random.default_rng(0)
    shape = (count, *sides, channels)
    if dtype == "float32":
        return rng.uniform(low, high, shape).astype(dtype)
    return rng.integers(low, high, shape, dtype)


def build(kind, sides=8):
    channels, _, value_range, *_ = kind
    encoder = moco_keras.build_encoder(
        "resnet18",
        sides,
        4,
        channels=channels,
        value_range=value_range,
        mean=[0.4] * channels,
        std=[0.3] * channels,
        width=2,
    )
    augmenter = augmentations.multichannel(
        sides, min_area=0.5, value_range=value_range
    )
    model = moco_keras.MoCo(encoder, augmenter, queue_size=32)
    model.compile(optimizer=moco_keras.optimizers.SGD(0.01))
    return model


def test_an_encoder_takes_pixels_as_they_are(kind, shallow_networks):
    channels, _, value_range, *_ = kind
    model, images = build(kind), draw(kind)
    encoder = model.query_encoder
    low, high = value_range or (0, 255)
    normalize = keras.Model(
        encoder.input, encoder.get_layer("normalization").output
    )
    expected = ((images.astype("float64") - low) / (high - low) - 0.4) / 0.3
    np.testing.assert_allclose(normalize(images), expected, atol=1e-5)
    expected = pixel_format.PixelFormat(channels, value_range)
    assert pixel_format.of(encoder) == expected
    assert model.pixels == expected


@pytest.mark.parametrize(
    "value_range", [(0, 65535), (0, 4095), (-1, 1), (1e-3, 7.3), (-1e4, 1e6)]
)
def test_an_encoder_knows_its_range(value_range, shallow_networks):
    encoder = moco_keras.build_encoder(
        "resnet18", 8, width=2, value_range=value_range
    )
    assert pixel_format.of(encoder).value_range == value_range


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["gray", "satellite", "measured"], indirect=True
)
def test_from_array_to_export(kind, shallow_networks, tmp_path):
    """Fit, kNN, health, predict, save, load, export, without Keras."""
    model, images = build(kind), draw(kind)
    labels = np.arange(16) % 2
    logs = model.fit(
        images,
        batch_size=8,
        epochs=2,
        verbose=0,
        validation_data=images[:8],
        callbacks=[
            callbacks.KNNMonitor((images, labels), (images[:4], labels[:4])),
            callbacks.HealthMonitor(images),
        ],
    ).history
    assert np.isfinite(logs["loss"] + logs["val_loss"]).all()
    assert {"knn", "health_rank_features"} <= set(logs)
    projections = model.predict(images, verbose=0)
    tensors = tf.data.Dataset.from_tensor_slices(images)
    tensors = tensors.batch(8, drop_remainder=True)
    np.testing.assert_allclose(
        model.predict(tensors, verbose=0), projections, atol=1e-6
    )
    model.fit(tensors, epochs=3, initial_epoch=2, verbose=0)
    projections = model.predict(images, verbose=0)
    found = features.extract(model, images)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.image_dtype == model.image_dtype == kind[1]
    np.testing.assert_allclose(
        loaded.predict(images, verbose=0), projections, atol=1e-5
    )
    model.export(tmp_path / "projector")
    projector = tf.saved_model.load(tmp_path / "projector")
    np.testing.assert_allclose(projector.serve(images), projections, atol=1e-5)

    folder = moco_keras.export_encoder(model, tmp_path / "encoder")
    frozen = moco_keras.load_encoder(tmp_path / "encoder")
    embeddings = features.unit_rows(frozen(images).numpy())
    np.testing.assert_allclose(embeddings, found, atol=1e-5)
    again = keras.models.load_model(folder / "encoder.keras")
    np.testing.assert_allclose(
        features.extract(again, images), found, atol=1e-5
    )
    np.savez(tmp_path / "given.npz", images=images)
    found_by_others = without_keras.embed(tmp_path / "given.npz", [str(folder)])
    for embeddings in found_by_others.values():
        np.testing.assert_allclose(
            features.unit_rows(embeddings), found[: len(embeddings)], atol=1e-5
        )


def test_all_levels_reach_the_encoder(shallow_networks):
    """Images that are equal in their upper eight bits."""
    kind = (1, "uint16", (0, 65535), 0, 65536)
    model = build(kind)
    images = np.full((2, 8, 8, 1), 4088, "uint16")
    images[1, ::2] += 1
    first, second = features.outputs(model.query_encoder, images)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("kind", ["gray", "measured"], indirect=True)
def test_views_that_are_cut_while_reading(kind, shallow_networks):
    """From a data set of single images, of sizes that differ."""
    model, (_, dtype, value_range, *_) = build(kind), kind
    images = [draw(kind, 1, sides)[0] for sides in [(9, 12), (11, 8)] * 4]
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(images),
        output_signature=tf.TensorSpec((None, None, kind[0]), dtype),
    ).apply(tf.data.experimental.assert_cardinality(8))
    augmenter = augmentations.crop_and_flip(8)
    views = data.two_views(dataset, augmenter, 4, value_range=value_range)
    logs = model.fit(views, verbose=0).history
    assert np.isfinite(logs["loss"]).all()
    if value_range:
        with pytest.raises(ValueError, match="Images must be a uint8 batch"):
            data.two_views(dataset, augmenter, 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_pixel_that_is_no_number_is_named(bad, shallow_networks):
    kind = KINDS["measured"]
    model, images = build(kind), draw(kind)
    images[5, 1, 2, 3] = images[7, 0, 0, 0] = bad
    for use in (
        lambda: model.fit(images, batch_size=8, verbose=0),
        lambda: model.predict(images, verbose=0),
        lambda: model.evaluate(images, verbose=0),
        lambda: features.extract(model, images),
    ):
        with pytest.raises(ValueError, match="in 2 of them.*images\\[5\\]"):
            use()


@pytest.mark.parametrize("name", ["satellite", "scanner", "measured"])
def test_pixels_beyond_the_range_are_refused(name, shallow_networks):
    kind = KINDS[name]
    model, images = build(kind), draw(kind)
    high = kind[2][1]
    images[3, 0, 0, 0] = high + 1
    message = rf"pixels in \[.*pixels from .* to {high + 1:g}"
    with pytest.raises(ValueError, match=message):
        model.fit(images, batch_size=8, verbose=0)
    with pytest.raises(ValueError, match="dtype=float64.*astype.'float32'"):
        model.fit(images.astype("float64"), batch_size=8, verbose=0)


def test_a_range_may_be_that_of_the_images(shallow_networks):
    """Whose numbers have no few digits."""
    rng = np.random.default_rng(0)
    images = rng.normal(0.1, 0.03, (8, 8, 8, 1)).astype("float32")
    encoder = moco_keras.build_encoder(
        "resnet18",
        8,
        channels=1,
        value_range=(images.min(), images.max()),
        mean=[0.5],
        std=[0.2],
        width=2,
    )
    assert np.isfinite(features.extract(encoder, images)).all()


def test_other_channels_are_refused(kind, shallow_networks):
    model, images = build(kind), draw(kind)
    more = np.concatenate([images, images], axis=-1)
    message = f"Received: {2 * kind[0]} channels.*`channels={2 * kind[0]}`"
    for use in (
        lambda: model.fit(more, batch_size=8, verbose=0),
        lambda: model.predict(more, verbose=0),
        lambda: model.fit(
            images,
            batch_size=8,
            verbose=0,
            callbacks=callbacks.KNNMonitor(
                (more, np.arange(16) % 2), (more, np.arange(16) % 2)
            ),
        ),
    ):
        with pytest.raises(ValueError, match=message):
            use()


def test_views_of_another_range_are_warned_of(shallow_networks):
    kind = KINDS["gray"]
    model = build(kind)
    rng = np.random.default_rng(0)
    views = rng.uniform(0, 65535, (2, 8, 8, 8, 1)).astype("float32")
    with pytest.warns(UserWarning, match=r"\[0, 255\].*6\.5\d?e\+04"):
        model.fit((views[0], views[1]), batch_size=8, verbose=0)


def test_encoder_and_augmenter_must_have_one_range(shallow_networks):
    encoder = build(KINDS["satellite"]).query_encoder
    augmenter = augmentations.multichannel(8)
    with pytest.raises(ValueError, match=r"\[0, 10000\].*\[0.0, 255.0\]"):
        moco_keras.MoCo(encoder, augmenter, queue_size=32)


def test_half_precision_keeps_pixels_whole(shallow_networks, tmp_path):
    """A policy that casts what layers are given would round them."""
    kind = (1, "float32", (0, 65535), 0, 65535)
    model, images = build(kind), draw(kind)
    images = np.round(images)
    moco_keras.export_encoder(model, tmp_path, image_dtype="uint16")
    keras.config.set_dtype_policy("mixed_bfloat16")
    encoder = moco_keras.load_encoder(tmp_path)
    np.testing.assert_array_equal(
        encoder(images), encoder(images.astype("uint16"))
    )
    assert build(kind).predict(images, verbose=0).dtype == "float32"


def test_mean_and_deviation_must_be_known():
    for given in ({}, {"mean": [0.5]}, {"mean": [0.5], "std": [0.0]}):
        with pytest.raises(ValueError, match="must be 1 number|must be a num"):
            moco_keras.build_encoder("resnet18", 8, channels=1, **given)
    with pytest.raises(ValueError, match="`mean` must be 2 numbers.*1, 2, 3"):
        moco_keras.build_encoder(
            "resnet18", 8, channels=2, mean=[1, 2, 3], std=[1, 1]
        )
    with pytest.raises(ValueError, match="`channels` must be a positive"):
        moco_keras.build_encoder("resnet18", 8, channels=0)


@pytest.mark.parametrize("name", ["mean", "std"])
def test_mean_and_deviation_are_not_in_units_of_the_pixels(name):
    given = {"mean": [0.3], "std": [0.1], name: [1200.0]}
    with pytest.raises(ValueError, match=rf"{name}.*range` is \[0, 1\].*1200"):
        moco_keras.build_encoder(
            "resnet18", 8, channels=1, value_range=(0, 4095), **given
        )


def test_a_folder_must_have_pixels_in_the_range(tmp_path):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.full((8, 8, 1), 900 * i, "uint16"))
    stream = data.read(tmp_path, channels=None)
    stream.check_images(pixel_format.PixelFormat(1, (0.0, 1800.0)))
    with pytest.raises(
        ValueError,
        match=r"in \[0, 1\]\. Received: pixels from 900.* image 1 of",
    ):
        stream.check_images(pixel_format.PixelFormat(1, (0.0, 1.0)))


@pytest.mark.slow
def test_images_need_not_be_square(shallow_networks, tmp_path):
    kind, sides = (3, "uint8", None, 0, 256), (8, 16)
    encoder = moco_keras.build_encoder("resnet18", sides, 4, width=2)
    augmenter = augmentations.cifar(sides, min_area=0.5)
    model = moco_keras.MoCo(encoder, augmenter, queue_size=32)
    model.compile(optimizer=moco_keras.optimizers.SGD(0.01))
    images = draw(kind, sides=(20, 30))
    model.fit(images, batch_size=8, verbose=0)
    small = augmentations.evaluation(sides)(images)
    small = np.round(small).astype("uint8")
    projections = model.predict(small, verbose=0)
    np.testing.assert_allclose(
        model.predict(images, verbose=0), projections, atol=0.02
    )
    moco_keras.export_encoder(model, tmp_path / "encoder")
    encoder = moco_keras.load_encoder(tmp_path / "encoder", encoded=True)
    files = [tf.io.encode_png(image).numpy() for image in small]
    embeddings = features.unit_rows(encoder(tf.constant(files)).numpy())
    expected = features.extract(model, small)
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)


def test_a_gray_encoder_takes_gray_files(shallow_networks, tmp_path):
    kind = KINDS["gray"]
    model, images = build(kind), draw(kind)
    folder = moco_keras.export_encoder(model, tmp_path / "encoder")
    encoder = moco_keras.load_encoder(tmp_path / "encoder", encoded=True)
    files = [tf.io.encode_png(image).numpy() for image in images]
    embeddings = features.unit_rows(encoder(tf.constant(files)).numpy())
    expected = features.extract(model, images)
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    card = (folder / "README.md").read_text()
    assert "from 0 to 255, 8 by 8 of them, with 1 channel." in card


def test_other_types_have_no_signature_for_files(shallow_networks, tmp_path):
    kind = KINDS["satellite"]
    folder = moco_keras.export_encoder(build(kind), tmp_path / "encoder")
    signatures = tf.saved_model.load(str(folder)).signatures
    assert list(signatures) == ["serving_default"]
    with pytest.raises(ValueError, match="`encoded` needs an encoder of uint8"):
        moco_keras.load_encoder(folder, encoded=True)
    (spec,) = (
        signatures["serving_default"].structured_input_signature[1].values()
    )
    assert spec.dtype == "float32"  # it was not trained on images
    card = (folder / "README.md").read_text()
    assert "from 0 to 10000, 8 by 8 of them, with 13 channels." in card
    assert "image_bytes" not in card
    folder = moco_keras.export_encoder(
        build(kind), tmp_path / "encoder", image_dtype="uint16"
    )
    signatures = tf.saved_model.load(str(folder)).signatures
    (spec,) = (
        signatures["serving_default"].structured_input_signature[1].values()
    )
    assert spec.dtype == "uint16"
    with pytest.raises(ValueError, match="`image_dtype` must be one of uint8"):
        moco_keras.export_encoder(
            build(kind), tmp_path / "encoder", image_dtype="float64"
        )
