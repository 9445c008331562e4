import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
import without_keras

import moco_keras
from moco_keras import build_classifier, export_classifier, load_encoder
from moco_keras.export import verification
from moco_keras.export.classifier import _Classifier

NAMES = [
    *("a red car", "größe", "猫", os.fsdecode(b"\xff\xfe"), "*b*\n# c", ""),
]


@pytest.fixture
def make_classifier(make_encoder, rng):
    """Makes tiny classifiers of six classes whose logits spread."""

    def make(encoder=None, trainable="all", spread=1):
        model = build_classifier(encoder or make_encoder(), 6)
        head = model.get_layer("logits")
        head.kernel.assign(rng.normal(0, spread / 100, head.kernel.shape))
        head.bias.assign(rng.normal(0, spread, head.bias.shape))
        return model

    return make


def softmax(logits):
    exponentials = np.exp(logits - np.max(logits, axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def probabilities_of(model, images):
    """What an export should return."""
    return softmax(model.predict(images, verbose=0).astype("float64"))


def by_falling_probability(probabilities, names):
    """The names in the order of each row, as bytes."""
    encoded = [os.fsencode(name) for name in names]
    rows = []
    for row in probabilities:
        numbers = sorted(range(len(row)), key=lambda n: (-row[n], n))
        rows.append([encoded[n] for n in numbers])
    return np.array(rows, dtype=object).reshape(len(rows), len(names))


@pytest.mark.slow
def test_both_signatures_without_keras(
    images, encoded, shallow_networks, tmp_path
):
    def make():
        encoder = moco_keras.build_encoder("resnet18", 8, width=4, bn_splits=2)
        return build_classifier(encoder, 6)

    images, encoded = np.tile(images, (4, 1, 1, 1)), 4 * encoded
    resize = moco_keras.augmentations.evaluation(8)
    sized = [
        resize(tf.io.decode_image(x, channels=3)[None])[0] for x in encoded
    ]
    expected = {}
    for precision in ("float32", "mixed_bfloat16"):
        keras.config.set_dtype_policy(precision)
        model = make()
        folder = export_classifier(model, tmp_path / precision, NAMES)
        # The signatures compute in float32, whatever the model does.
        keras.config.set_dtype_policy("float32")
        twin = make()
        twin.set_weights(model.get_weights())
        assert folder == tmp_path / precision / "1"
        for key, x in {"images": images, "image_bytes": sized}.items():
            name = f"{folder} {key}"
            expected[name] = probabilities_of(twin, np.stack(x))
    folders = [name.split()[0] for name in expected][::2]
    given = tmp_path / "given.npz"
    np.savez(given, images=images, image_bytes=np.array(encoded))
    names = ["probabilities", "classes"]
    found, classes = without_keras.outputs(given, folders, names).values()
    assert len(found) == len(classes) == 16
    for name, probabilities in found.items():
        wanted = expected[name.rpartition(" ")[0]][: len(probabilities)]
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(
            probabilities, wanted, rtol=0, atol=1e-5, err_msg=name
        )
        np.testing.assert_array_equal(
            classes[name].astype(object),
            by_falling_probability(probabilities, NAMES),
        )


@pytest.mark.slow
@pytest.mark.xdist_group("consumer")
def test_a_program_in_c_gets_the_same_probabilities(
    consumer, images, encoded, make_classifier, tmp_path
):
    model = make_classifier()
    folder = export_classifier(model, tmp_path / "saved", NAMES)
    images.tofile(tmp_path / "pixels")
    result = consumer(
        *(folder, "serving_default", "8", tmp_path / "pixels"),
        output="probabilities",
    )
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(
        np.loadtxt(result.stdout.splitlines(), ndmin=2),
        probabilities_of(model, images),
        rtol=0,
        atol=1e-5,
    )
    paths = [tmp_path / f"{i}.jpg" for i in range(len(encoded))]
    for path, contents in zip(paths, encoded, strict=True):
        path.write_bytes(contents)
    result = consumer(folder, "serve_encoded", *paths, output="probabilities")
    assert result.returncode == 0, result.stderr
    serve = tf.saved_model.load(folder).signatures["serve_encoded"]
    np.testing.assert_allclose(
        np.loadtxt(result.stdout.splitlines(), ndmin=2),
        serve(image_bytes=tf.constant(encoded))["probabilities"],
        rtol=0,
        atol=1e-5,
    )


def test_probabilities_and_classes(images, encoded, make_classifier, tmp_path):
    model, encoded = make_classifier(), encoded[:4]
    folder = export_classifier(model, tmp_path, NAMES)
    signatures = tf.saved_model.load(folder).signatures
    outputs = signatures["serving_default"](images=tf.constant(images))
    np.testing.assert_allclose(
        outputs["probabilities"],
        probabilities_of(model, images),
        rtol=0,
        atol=1e-5,
    )
    resize = moco_keras.augmentations.evaluation(8)
    sized = [
        resize(tf.io.decode_image(x, channels=3)[None])[0] for x in encoded
    ]
    others = signatures["serve_encoded"](image_bytes=tf.constant(encoded))
    np.testing.assert_allclose(
        others["probabilities"],
        probabilities_of(model, np.stack(sized)),
        rtol=0,
        atol=1e-5,
    )
    for found in (outputs, others):
        np.testing.assert_array_equal(
            found["classes"],
            by_falling_probability(found["probabilities"].numpy(), NAMES),
        )
    first = outputs["classes"][0].numpy()
    assert {os.fsdecode(name) for name in first} == set(NAMES)
    assert "größe".encode() in first and b"\xff\xfe" in first


def test_of_equal_probabilities_the_lower_class_is_first(
    images, make_classifier, tmp_path
):
    model = make_classifier()
    head = model.get_layer("logits")
    head.kernel.assign(np.zeros(head.kernel.shape))
    # The softmax of the last two is 0.
    head.bias.assign([0, 1, 0, 1, -300, -200])
    names = ["f", "e", "d", "c", "b", "a\0"]
    folder = export_classifier(model, tmp_path, np.array(names, dtype=object))
    serve = tf.saved_model.load(folder).signatures["serving_default"]
    for row in serve(images=tf.constant(images))["classes"].numpy():
        assert row.tolist() == [b"e", b"c", b"f", b"d", b"b", b"a\0"]


def test_an_empty_batch_has_no_classes(make_classifier, tmp_path):
    folder = export_classifier(make_classifier(), tmp_path, NAMES)
    signatures = tf.saved_model.load(folder).signatures
    for name, given in {
        "serving_default": {"images": tf.zeros((0, 8, 8, 3), "uint8")},
        "serve_encoded": {"image_bytes": tf.constant([], "string")},
    }.items():
        outputs = signatures[name](**given)
        assert outputs.keys() == {"probabilities", "classes"}
        assert all(output.shape == (0, 6) for output in outputs.values())
        assert outputs["classes"].dtype == tf.string


def test_batch_norm_and_drop_out_are_in_inference(images, tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, strides=2)(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.9)(keras.layers.ReLU()(x))
    encoder = moco_keras.build_encoder(keras.Model(inputs, x), 8, 4)
    model = build_classifier(encoder, 2)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    model.fit(images, np.arange(16) % 2, verbose=0)
    (mean,) = (v for v in model.variables if v.name == "moving_mean")
    assert np.any(mean)
    folder = export_classifier(model, tmp_path, ["odd", "even"])
    serve = tf.saved_model.load(folder).signatures["serving_default"]
    found = serve(images=tf.constant(images))["probabilities"]
    np.testing.assert_allclose(
        found, probabilities_of(model, images), rtol=0, atol=1e-5
    )
    for i in range(4):  # not by the statistics of a batch
        np.testing.assert_allclose(
            serve(images=tf.constant(images[i : i + 1]))["probabilities"][0],
            found[i],
            rtol=0,
            atol=1e-6,
        )


def test_a_linear_layer_on_a_frozen_encoder(images, make_model, tmp_path):
    moco = make_model(splits=4)
    for variable in moco.query_encoder.variables:
        if variable.name.startswith("moving_"):
            variable.assign(np.linspace(1, 2, 6))
    model = build_classifier(moco, 3, trainable="head")
    kernel, bias = np.arange(18).reshape(6, 3) / 9, np.array([0.5, 0, -0.5])
    model.get_layer("logits").set_weights([kernel, bias])
    folder = export_classifier(model, tmp_path, ["a", "b", "c"])
    serve = tf.saved_model.load(folder).signatures["serving_default"]
    backbone = moco_keras.backbone(moco.query_encoder)
    features = backbone.predict(images, batch_size=16, verbose=0)
    np.testing.assert_allclose(
        serve(images=tf.constant(images))["probabilities"],
        softmax(features.astype("float64") @ kernel + bias),
        rtol=0,
        atol=1e-5,
    )
    loaded = keras.models.load_model(folder / "classifier.keras")
    assert len(loaded.trainable_variables) == 2  # frozen as before
    before = loaded.get_weights()
    loaded.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    loaded.fit(images[:15], np.arange(15) % 3, batch_size=5, verbose=0)
    changed = [
        (a != b).any()
        for a, b in zip(before, loaded.get_weights(), strict=True)
    ]
    assert sum(changed) == 2


def test_classifier_keras_is_trained_further(images, make_encoder, tmp_path):
    encoder = make_encoder(splits=4)
    model = build_classifier(encoder, 2)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    folder = export_classifier(model, tmp_path, ["a", "b"])
    loaded = keras.models.load_model(folder / "classifier.keras")
    np.testing.assert_allclose(loaded(images), model(images), atol=1e-6)
    loaded.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    loaded.fit(images[:15], np.arange(15) % 2, batch_size=7, verbose=0)
    again = export_classifier(loaded, tmp_path, ["a", "b"])
    assert again.name == "2"


def test_an_export_describes_itself(make_classifier, tmp_path):
    training = {"data": "cifar10", "metrics": {"accuracy": 0.875}}
    folder = export_classifier(
        make_classifier(), tmp_path / "mine", NAMES, 4, training=training
    )
    assert folder.name == "4"
    record = json.loads((folder / "classifier.json").read_text())
    assert record["name"] == "mine"
    assert record["image_size"] == 8
    assert record["classes"] == NAMES
    assert record["training"] == training
    signatures = tf.saved_model.load(folder).signatures
    assert record["signatures"].keys() == signatures.keys()
    for table in record["signatures"].values():
        assert table["outputs"] == {
            "probabilities": {"dtype": "float32", "shape": [None, 6]},
            "classes": {"dtype": "string", "shape": [None, 6]},
        }
    card = (folder / "README.md").read_text()
    for words in (
        "# mine",
        "gives each of 6 classes",
        "| `probabilities`, float32 (N, 6) |",
        "| `classes`, string (N, 6) |",
        "    1  größe",
        "    3  \\xff\\xfe",
        "    4  *b*\\n# c",
        '"accuracy": 0.875',
        record["weights"]["sha256"],
        "`classifier.keras` returns logits",
        'classifier.signatures["serve_encoded"]',
    ):
        assert words in card, words
    headings = [line for line in card.splitlines() if line.startswith("##")]
    assert headings == ["## Signatures", "## Classes", "## Training"]


@pytest.mark.parametrize(
    ("class_names", "received"),
    [
        (None, "None"),
        ("abcdef", "'abcdef'"),
        (set("abcdef"), "{"),
        (range(6), r"range\(0, 6\)"),
        ([*"abcde", 5], "5 among them"),
        ([*"abcde", b"f"], "b'f' among them"),
        ([*"abcde", "\ud800"], r"'\\ud800'"),
        (list("abcde"), "5 names"),
        (list("abcdefg"), "7 names"),
        (list("abcdea"), "'a' 2 times"),
        ([*"abcd", "é", os.fsdecode(b"\xc3") + "\udca9"], "'é' 2 times"),
    ],
)
def test_names_that_do_not_fit_are_refused(
    class_names, received, make_classifier, tmp_path
):
    with pytest.raises(
        ValueError, match=f"the classifier's 6 outputs.*Received: {received}"
    ):
        export_classifier(make_classifier(), tmp_path / "no", class_names)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"version": 0}, "version=0"),
        ({"format": "pth"}, "one of onnx, litert, or None.*format='pth'"),
        ({"training": {"a": {1}}}, "`training` must be a dict of"),
    ],
)
def test_bad_arguments_are_refused(
    make_classifier, tmp_path, arguments, message
):
    with pytest.raises(ValueError, match=message):
        export_classifier(
            make_classifier(), tmp_path / "saved", NAMES, **arguments
        )
    assert not (tmp_path / "saved").exists()


def model_that(ends, scale="normalization", shape=(8, 8, 3)):
    """A model of images which ends with some layers."""
    inputs = x = keras.Input(shape)
    for layer in (keras.layers.Rescaling(1 / 255, name=scale), *ends):
        x = layer(x)
    return keras.Model(inputs, x)


def head(**kwargs):
    """The end of a classifier."""
    pooling = keras.layers.GlobalAveragePooling2D()
    return [pooling, keras.layers.Dense(6, name="logits", **kwargs)]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: "model.keras", "images of one size.*build_classifier"),
        (lambda: model_that(head(), shape=(8, None, 3)), "of one size"),
        (lambda: model_that(head(), scale="mine"), "range is unknown"),
        (lambda: model_that([keras.layers.Flatten()]), "called 'logits'"),
        (
            lambda: model_that([*head(), keras.layers.Softmax(name="p")]),
            "ends with 'p'.*leave the softmax out",
        ),
        (
            lambda: model_that([keras.layers.Dense(6, name="logits")]),
            r"returns \(None, 8, 8, 6\)",
        ),
    ],
)
def test_models_that_are_not_classifiers_are_refused(model, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_classifier(model(), tmp_path / "no", list("abcdef"))
    assert not (tmp_path / "no").exists()


@keras.saving.register_keras_serializable(package="test_classifier_export")
class Forgetful(keras.layers.Layer):
    """Multiplies by a number that its file does not hold."""

    factor = 1.0

    def call(self, inputs):
        return inputs * self.factor


def test_a_part_that_differs_is_refused_where_one_class_is_certain(
    images, tmp_path
):
    layer = Forgetful()
    layer.factor = 3.0
    model = model_that([layer, *head()])
    model.get_layer("logits").bias.assign([30, 0, 0, 0, 0, 0])
    found, right = model(images), model_that([Forgetful(), *head()])
    right.set_weights(model.get_weights())
    assert np.abs(softmax(found) - softmax(right(images))).max() < 1e-4
    with pytest.raises(ValueError, match="what the classifier does.*logarithm"):
        export_classifier(model, tmp_path, list("abcdef"))
    assert not list(tmp_path.iterdir())


def test_classes_that_do_not_follow_are_refused(make_classifier):
    exported = _Classifier(make_classifier(), list("abcdef"), None)
    probabilities = tf.constant([[0.1, 0.4, 0.2, 0.1, 0.1, 0.1]])
    outputs = {
        "probabilities": probabilities,
        "classes": tf.constant([[b"b", b"c", b"a", b"d", b"e", b"f"]]),
    }
    verification.check_more(exported, "serving_default", outputs)
    outputs["classes"] = tf.constant([list(b"abcdef")])
    with pytest.raises(ValueError, match="`classes` of an export must follow"):
        verification.check_more(exported, "serving_default", outputs)


def test_a_classifier_is_not_loaded_as_an_encoder(make_classifier, tmp_path):
    export_classifier(make_classifier(), tmp_path, NAMES)
    with pytest.raises(ValueError, match="must be that of an encoder.*classif"):
        load_encoder(tmp_path)
