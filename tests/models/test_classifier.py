import keras
import numpy as np
import pytest

import moco_keras
from moco_keras import build_classifier, build_encoder, export_encoder
from moco_keras.models import model_state

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture
def labels(rng):
    """Of the sixteen images."""
    return rng.integers(0, 3, 16)


def values(model):
    return [v.numpy() for v in model.variables]


def assert_equal(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def moved(model, images):
    """Gives batch norm statistics other than those it starts with."""
    for layer in model_state.layers(model):
        if isinstance(layer, moco_keras.SplitBatchNormalization):
            layer(
                np.float32(images[:, :2, :2] @ np.ones((3, 6))), training=True
            )
    return model


@pytest.fixture(params=["MoCo", "encoder", "export", "version", "run", "file"])
def source(request, make_model, images, tmp_path):
    """An encoder with splits as users have it, and its features of images."""
    model = make_model(splits=2)
    encoder = moved(model.query_encoder, images)
    features = moco_keras.backbone(encoder).predict(images, verbose=0)
    if request.param == "MoCo":
        return model, features
    if request.param == "encoder":
        return encoder, features
    if request.param == "file":
        model.save(tmp_path / "model.keras")
        return tmp_path / "model.keras", features
    folder = export_encoder(model, tmp_path / "encoder")
    export_encoder(make_model(), tmp_path / "older" / "encoder")
    return {
        "export": str(tmp_path / "encoder"),
        "version": folder,
        "run": tmp_path,
    }[request.param], features


@pytest.mark.parametrize("trainable", ["all", "head"])
def test_a_classifier_is_a_linear_layer_on_features(source, trainable, images):
    encoder, features = source
    model = build_classifier(encoder, 3, trainable=trainable)
    assert model.input_shape == (None, 8, 8, 3)
    assert model.layers[-1].name == "logits"
    kernel, bias = (v.numpy() for v in model.layers[-1].variables)
    np.testing.assert_array_equal(bias, 0)
    logits = model.predict(images[:5], verbose=0)
    np.testing.assert_allclose(logits, features[:5] @ kernel, atol=1e-5)
    norms = [
        layer
        for layer in model_state.layers(model)
        if isinstance(layer, moco_keras.SplitBatchNormalization)
    ]
    assert [norm.splits for norm in norms] == [1]
    assert not any("head" in layer.name for layer in model.layers)


def test_an_encoder_in_a_file(make_encoder, images, tmp_path):
    encoder = make_encoder()
    encoder.save(tmp_path / "encoder.keras")
    model = build_classifier(tmp_path / "encoder.keras", 2)
    features = moco_keras.backbone(encoder).predict(images, verbose=0)
    np.testing.assert_allclose(
        model.predict(images, verbose=0),
        features @ model.layers[-1].kernel.numpy(),
        atol=1e-5,
    )


def test_weights_of_the_linear_layer_are_normal(make_encoder):
    model = build_classifier(make_encoder(), 1000)
    kernel = model.layers[-1].kernel.numpy()  # 6,000 of them
    assert kernel.std() == pytest.approx(0.01, rel=0.05)
    assert kernel.mean() == pytest.approx(0, abs=0.001)
    assert np.abs(kernel).max() > 0.03  # not cut off


@pytest.mark.parametrize("trainable", ["all", "head"])
def test_training_leaves_the_encoder_as_it_is(
    trainable, make_model, images, labels
):
    model = make_model()
    before = values(model)
    classifier = build_classifier(model, 3, trainable=trainable)
    started = values(classifier)
    classifier.compile(moco_keras.optimizers.SGD(0.1), LOSS)
    # Batches of 7, 7 and 2, which no splits would divide.
    classifier.fit(images, labels, batch_size=7, verbose=0)
    assert_equal(values(model), before)
    changed = {
        v.path
        for v, value in zip(classifier.variables, started, strict=True)
        if not np.array_equal(v, value)
    }
    head = {v.path for v in classifier.layers[-1].variables}
    every = {v.path for v in classifier.variables}
    assert changed == {"all": every, "head": head}[trainable]
    assert {v.path for v in classifier.trainable_variables} == {
        "all": {p for p in every if "moving" not in p},
        "head": head,
    }[trainable]


class Doubled(keras.layers.Layer):
    """Has a layer with dropout, but no argument `training` itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = keras.layers.Dropout(0.5)

    def build(self, shape):
        self.built = True

    def call(self, x):
        return 2 * self.dropout(x)


def encoder_with_nested_layers(frozen=False):
    """A functional model in a sequential one in a functional one."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, trainable=not frozen, name="first")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.5)(x)
    inner = keras.Model(inputs, x, name="inner")
    x = keras.Sequential([inner, keras.layers.ReLU()])(inputs)
    x = keras.layers.Conv2D(6, 3)(Doubled()(x))
    return build_encoder(keras.Model(inputs, x), 8, 4)


def test_nested_layers_are_frozen_and_run_in_inference_mode(images, labels):
    with keras.saving.custom_object_scope({"Doubled": Doubled}):
        model = build_classifier(
            encoder_with_nested_layers(), 3, trainable="head"
        )
    head = model.layers[-1]
    assert [v.path for v in model.trainable_variables] == [
        v.path for v in head.variables
    ]
    model.compile(moco_keras.optimizers.SGD(0.1), LOSS)
    logits = model.predict(images, verbose=0)
    np.testing.assert_array_equal(model(images, training=True), logits)
    loss = model.evaluate(images, labels, verbose=0)
    assert model.train_on_batch(images, labels) == pytest.approx(loss, 1e-5)
    before = values(model)[: -len(head.variables)]
    model.fit(images, labels, batch_size=4, verbose=0)
    assert_equal(values(model)[: -len(head.variables)], before)


def test_frozen_layers_of_the_encoder_stay_frozen():
    with keras.saving.custom_object_scope({"Doubled": Doubled}):
        model = build_classifier(encoder_with_nested_layers(frozen=True), 3)
    names = {v.path.split("/")[-2] for v in model.trainable_variables}
    assert "first" not in names
    assert len(names) == 3  # the other convolution, batch norm and the head


def test_fine_tuning_drops_units(images):
    with keras.saving.custom_object_scope({"Doubled": Doubled}):
        model = build_classifier(encoder_with_nested_layers(), 3)
    first, second = (model(images, training=True).numpy() for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("trainable", ["all", "head"])
def test_saved_and_loaded(trainable, make_encoder, images, labels, tmp_path):
    model = build_classifier(make_encoder(2), 3, trainable=trainable)
    optimizer = moco_keras.optimizers.SGD(0.01, multipliers={"logits": 20})
    model.compile(optimizer, LOSS)
    model.fit(images, labels, batch_size=8, verbose=0)
    model.save(tmp_path / "classifier.keras")
    loaded = keras.models.load_model(tmp_path / "classifier.keras")
    np.testing.assert_array_equal(
        loaded.predict(images, verbose=0), model.predict(images, verbose=0)
    )
    for each in (model, loaded):
        each.fit(images, labels, batch_size=16, shuffle=False, verbose=0)
    assert_equal(values(loaded), values(model))
    assert [v.path for v in loaded.trainable_variables] == [
        v.path for v in model.trainable_variables
    ]


def test_class_weights_and_sample_weights(make_encoder, images, labels):
    """A class of weight 0 is not learnt."""
    of_classes = {0: 0.0, 1: 2.0, 2: 1.0}
    of_samples = np.array([of_classes[label] for label in labels])
    results = []
    for kwargs in (
        {"class_weight": of_classes},
        {"sample_weight": of_samples},
        {},
    ):
        keras.utils.set_random_seed(1)
        model = build_classifier(make_encoder(), 3)
        model.compile(moco_keras.optimizers.SGD(0.1), LOSS)
        model.fit(images, labels, batch_size=16, epochs=5, verbose=0, **kwargs)
        results.append(model.predict(images, verbose=0))
    by_class, by_sample, without = results
    np.testing.assert_allclose(by_class, by_sample, rtol=1e-4, atol=1e-5)
    assert not np.allclose(by_class, without, atol=0.01)


@pytest.mark.parametrize("trainable", ["all", "head"])
def test_logits_are_float32_in_mixed_precision(
    trainable, make_encoder, images, labels
):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = build_classifier(make_encoder(), 3, trainable=trainable)
    assert model.layers[-2].compute_dtype == "bfloat16"
    assert model(images).dtype == "float32"
    model.compile(moco_keras.optimizers.SGD(0.1), LOSS)
    history = model.fit(images, labels, epochs=20, verbose=0)
    losses = history.history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_classes": 1}, "an integer of 2 or more.*num_classes=1"),
        ({"num_classes": 2.0}, "an integer of 2 or more.*num_classes=2.0"),
        ({"trainable": "backbone"}, '"all" or "head".*trainable=\'backbone\''),
        ({"encoder": None}, "`encoder` must be a path"),
    ],
)
def test_bad_arguments(kwargs, message, make_encoder):
    given = {"encoder": make_encoder(), "num_classes": 3} | kwargs
    with pytest.raises(ValueError, match=message):
        build_classifier(**given)


def test_an_encoder_without_a_backbone_is_refused():
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    with pytest.raises(ValueError, match="must have a layer called 'features'"):
        build_classifier(model, 3)


def test_paths_without_an_encoder_are_refused(make_encoder, tmp_path):
    (tmp_path / "run" / "encoder").mkdir(parents=True)
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "run"):
        with pytest.raises(FileNotFoundError, match=f"{path}, where there is"):
            build_classifier(path, 3)
    file = tmp_path / "encoder.keras"
    with pytest.raises(FileNotFoundError, match=f"encoder={file}"):
        build_classifier(file, 3)
    make_encoder().save(file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"`encoder` must.*{file}.*damaged"):
        build_classifier(file, 3)
