import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import without_keras
from programs import ROOT
from tensorflow.core.protobuf import saved_model_pb2

import moco_keras
from moco_keras import export_encoder, load_encoder
from moco_keras.augmentations import evaluation
from moco_keras.distribution import accelerators
from moco_keras.models import model_state


def embed(encoder, images, normalize=False):
    """The embeddings that an export should return."""
    embedding = encoder.predict(images, verbose=0).astype("float32")
    if normalize:
        embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    return embedding


def in_float32(encoder):
    """An encoder of the same kind and weights, which computes in float32."""
    keras.config.set_dtype_policy("float32")
    twin = moco_keras.build_encoder("resnet18", 8, width=4)
    twin.set_weights(encoder.get_weights())
    return twin


@pytest.mark.slow
def test_both_signatures_without_keras(
    images, encoded, shallow_networks, tmp_path
):
    images, encoded = np.tile(images, (4, 1, 1, 1)), 4 * encoded
    sized = [
        evaluation(8)(tf.io.decode_image(x, channels=3)[None])[0]
        for x in encoded
    ]
    expected = {}
    for precision, output, normalize in (
        ("float32", "projection", True),
        ("mixed_bfloat16", "features", False),
    ):
        keras.config.set_dtype_policy(precision)
        encoder = moco_keras.build_encoder("resnet18", 8, width=4)
        folder = export_encoder(
            encoder, tmp_path / precision, output=output, normalize=normalize
        )
        assert folder == tmp_path / precision / "1"
        encoder = in_float32(encoder)
        if output == "features":
            encoder = moco_keras.backbone(encoder)
        for key, x in {"images": images, "image_bytes": sized}.items():
            expected[f"{folder} {key}"] = embed(encoder, np.stack(x), normalize)
    folders = [name.split()[0] for name in expected][::2]
    given = tmp_path / "given.npz"
    np.savez(given, images=images, image_bytes=np.array(encoded))
    results = without_keras.embed(given, folders)
    assert len(results) == 16
    for key, signature in without_keras.SIGNATURES.items():
        name = f"{folders[0]} {key}"
        results[f"{name} cli"] = saved_model_cli(
            folders[0], signature, f"{key}={given}[{key}]", tmp_path / key
        )
    for name, embedding in results.items():
        wanted = expected[name.rpartition(" ")[0]][: len(embedding)]
        assert embedding.dtype == np.float32
        np.testing.assert_allclose(
            embedding, wanted, rtol=0, atol=1e-5, err_msg=name
        )


def saved_model_cli(folder, signature, inputs, outdir):
    """The output of TensorFlow's command of the same name."""
    command = Path(sys.executable).with_name("saved_model_cli")
    subprocess.run(
        [
            *(command, "run", f"--dir={folder}", "--tag_set=serve"),
            *(f"--signature_def={signature}", f"--inputs={inputs}"),
            f"--outdir={outdir}",
        ],
        check=True,
        capture_output=True,
    )
    return np.load(outdir / "embedding.npy")


@pytest.mark.slow
@pytest.mark.xdist_group("consumer")
def test_a_program_in_c_gets_the_same_embeddings(
    consumer, images, encoded, make_encoder, tmp_path
):
    """Through the C API, whose loader TensorFlow Serving uses."""
    folder = export_encoder(make_encoder(), tmp_path / "saved")
    images.tofile(tmp_path / "pixels")
    paths = [tmp_path / f"{i}.jpg" for i in range(len(encoded))]
    for path, contents in zip(paths, encoded, strict=True):
        path.write_bytes(contents)
    signatures = tf.saved_model.load(folder).signatures
    for name, given, value in (
        ("serving_default", ["8", tmp_path / "pixels"], {"images": images}),
        ("serve_encoded", paths, {"image_bytes": encoded}),
    ):
        result = consumer(folder, name, *given)
        assert result.returncode == 0, result.stderr
        value = {key: tf.constant(x) for key, x in value.items()}
        expected = signatures[name](**value)["embedding"]
        found = np.loadtxt(result.stdout.splitlines(), ndmin=2)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    paths[3].write_text("a list of things to buy")
    refused = consumer(folder, "serve_encoded", *paths)
    assert refused.returncode == tf.errors.INVALID_ARGUMENT
    assert "Neither JPEG nor PNG" in refused.stderr
    (tmp_path / "pixels").write_bytes(bytes(2 * 9 * 9 * 3))
    refused = consumer(folder, "serving_default", "9", tmp_path / "pixels")
    assert refused.returncode == tf.errors.INVALID_ARGUMENT
    assert "[2,9,9,3] is not compatible" in refused.stderr
    (tmp_path / "pixels").write_bytes(b"")
    empty = consumer(folder, "serving_default", "8", tmp_path / "pixels")
    assert (empty.returncode, empty.stdout) == (0, ""), empty.stderr


def test_bytes_that_are_not_an_image_are_refused(
    encoded, make_encoder, tmp_path
):
    folder = export_encoder(make_encoder(), tmp_path)
    serve = tf.saved_model.load(folder).signatures["serve_encoded"]
    for bad in (b"", b"a list of things to buy", encoded[0][:50]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            serve(image_bytes=tf.constant([encoded[1], bad]))
    good = serve(image_bytes=tf.constant(encoded[:2]))["embedding"]
    assert good.shape == (2, 6)


def test_images_of_another_shape_are_refused(kind, make_encoder, tmp_path):
    folder = kind.export(make_encoder(), tmp_path)
    serve = tf.saved_model.load(folder).signatures["serving_default"]
    for shape in ([2, 9, 9, 3], [2, 8, 8, 1], [8, 8, 3]):
        found = re.escape(str(shape).replace(" ", ""))
        with pytest.raises(
            tf.errors.InvalidArgumentError,
            match=rf"given/images {found} is not.* expected shape \[\?,8,8,3\]",
        ):
            serve(images=tf.zeros(shape, "uint8"))


@pytest.mark.parametrize("normalize", [False, True])
def test_an_empty_batch_has_no_embeddings(normalize, make_encoder, tmp_path):
    folder = export_encoder(make_encoder(), tmp_path, normalize=normalize)
    signatures = tf.saved_model.load(folder).signatures
    for name, given in {
        "serving_default": {"images": tf.zeros((0, 8, 8, 3), "uint8")},
        "serve_encoded": {"image_bytes": tf.constant([], "string")},
    }.items():
        assert signatures[name](**given)["embedding"].shape == (0, 6)
    assert load_encoder(folder)(tf.zeros((0, 8, 8, 3), "uint8")).shape == (0, 6)


def test_files_of_the_encoders_size_are_not_cropped(
    images, make_encoder, tmp_path
):
    folder = export_encoder(make_encoder(), tmp_path)
    files = tf.constant([tf.io.encode_png(image).numpy() for image in images])
    np.testing.assert_allclose(
        load_encoder(folder, encoded=True)(files),
        load_encoder(folder)(images),
        atol=1e-5,
    )


@pytest.mark.slow
def test_damaged_files_are_embedded_or_refused(make_encoder, tmp_path):
    """Two thousand files and 50 MB of noise crash no process."""
    folder = export_encoder(make_encoder(), tmp_path)
    fuzz = ROOT / "tests/helpers/fuzz.py"
    result = subprocess.run(
        [sys.executable, fuzz, folder, "2000"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    seen = json.loads(result.stdout)
    assert seen["refusals"] + seen["embeddings"] == 2006
    assert min(seen["refusals"], seen["embeddings"]) > 100
    assert seen["more_memory_mib"] < 1000


def test_an_export_holds_only_the_encoder(make_model, tmp_path):
    model = make_model()
    folder = export_encoder(model, tmp_path)
    loaded = tf.saved_model.load(folder)
    backbone = moco_keras.backbone(model.query_encoder)
    held = sorted(tuple(v.shape) for v in loaded.variables)
    assert held == sorted(tuple(v.shape) for v in backbone.variables)
    written = tf.train.list_variables(str(folder / "variables" / "variables"))
    numbers = [np.prod(shape, dtype=int) for name, shape in written if shape]
    assert sum(numbers) == backbone.count_params()


def test_an_export_holds_the_table_of_a_lookup(images, tmp_path):
    """It is no variable, and the layer would fail where it is loaded."""
    inputs = keras.Input((8, 8, 3))
    lookup = keras.layers.IntegerLookup(vocabulary=[3, 1, 2, 0])
    level = lookup(keras.ops.cast(keras.ops.floor(inputs), "int64"))
    x = keras.layers.GlobalAveragePooling2D()(keras.ops.cast(level, "float32"))
    backbone = keras.Model(inputs, x)
    encoder = moco_keras.build_encoder(backbone, 8, pixels="raw", head="none")
    folder = export_encoder(encoder, tmp_path)
    images = images // 64
    signature = tf.saved_model.load(folder).signatures["serving_default"]
    np.testing.assert_allclose(
        signature(images=tf.constant(images))["embedding"],
        np.mean(np.array([4, 2, 3, 1])[images], axis=(1, 2)),
        rtol=0.01,
    )


def test_an_export_describes_itself(make_encoder, tmp_path):
    training = {"settings": {"epochs": 3}, "metrics": {"knn": 0.5}}
    folder = export_encoder(
        make_encoder(), tmp_path / "mine", version=4, training=training
    )
    record = json.loads((folder / "encoder.json").read_text())
    assert record["name"] == "mine"
    assert record["image_size"] == 8
    assert record["embedding_size"] == 6
    assert (record["output"], record["normalized"]) == ("features", False)
    assert record["training"] == training
    file = folder / record["weights"]["file"]
    digest = subprocess.run(
        ["sha256sum", file], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert record["weights"]["sha256"] == digest
    signatures = tf.saved_model.load(folder).signatures
    assert record["signatures"].keys() == signatures.keys()
    for name, table in record["signatures"].items():
        signature = signatures[name]
        inputs = signature.structured_input_signature[1]
        for specs, part in (
            (inputs, "inputs"),
            (signature.structured_outputs, "outputs"),
        ):
            assert table[part] == {
                key: {"dtype": spec.dtype.name, "shape": list(spec.shape)}
                for key, spec in specs.items()
            }
    card = (folder / "README.md").read_text()
    for words in ("# mine", "`image_bytes`, string (N)", '"epochs": 3', digest):
        assert words in card


def test_names_in_the_model_card_are_escaped(make_encoder, tmp_path):
    parent = tmp_path / "*a* <b> (c) $d$ `e`\n# f"
    training = {"classes": ["</pre>\n# h", "\udcff"]}
    folder = export_encoder(make_encoder(), parent, training=training)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.splitlines()[0] == (r"# \*a\* \<b\> (c) \$d\$ \`e\`\\n\# f")
    headings = [line for line in card.splitlines() if line.startswith("#")]
    assert headings[1:] == ["## Signatures", "## Training"]
    record = json.loads((folder / "encoder.json").read_text())
    assert record["name"] == parent.name and record["training"] == training


def test_the_folder_of_an_encoder_may_have_any_name(
    make_encoder, images, tmp_path
):
    made, found = make_encoder(), []
    for name in (b"plain", b"a[b]", b"a\\b", b"*?", b"\xff\n"):
        path = tmp_path / os.fsdecode(name)
        assert export_encoder(made, path) == path / "1"
        encoder = load_encoder(path)
        found.append(encoder(images))
        assert encoder.get_config()["filepath"] == str(path / "1")
    for embeddings in found[1:]:
        np.testing.assert_array_equal(embeddings, found[0])


def test_a_record_that_json_cannot_hold_is_refused(make_encoder, tmp_path):
    with pytest.raises(ValueError, match="`training` must be a dict of"):
        export_encoder(make_encoder(), tmp_path / "no", training={"a": {1}})
    assert not (tmp_path / "no").exists()


def test_an_unregistered_layer_is_refused(tmp_path):
    class Secret(keras.layers.Layer):
        def call(self, inputs):
            return inputs

    inputs = keras.Input((8, 8, 3))
    encoder = moco_keras.build_encoder(keras.Model(inputs, Secret()(inputs)), 8)
    with pytest.raises(ValueError, match="Secret.*register_keras_seri"):
        export_encoder(encoder, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_export_loads_as_a_frozen_layer(
    images, encoded, make_encoder, tmp_path
):
    encoder = make_encoder()
    backbone = moco_keras.backbone(encoder)
    export_encoder(encoder, tmp_path)
    export_encoder(encoder, tmp_path, output="projection")
    first = load_encoder(tmp_path, version=1)
    np.testing.assert_allclose(first(images), backbone(images), atol=1e-5)
    np.testing.assert_allclose(
        load_encoder(tmp_path)(images), encoder(images), atol=1e-5
    )
    served = tf.saved_model.load(tmp_path / "1").signatures["serve_encoded"]
    contents = tf.constant(encoded)
    np.testing.assert_array_equal(
        load_encoder(tmp_path / "1", encoded=True)(contents),
        served(image_bytes=contents)["embedding"],
    )

    inputs = keras.Input((8, 8, 3), dtype="uint8")
    probe = keras.Model(inputs, keras.layers.Dense(2)(first(inputs)))
    probe.compile(optimizer="sgd", loss="mse")
    probe.fit(images, np.ones((16, 2)), verbose=0)
    assert len(probe.trainable_variables) == 2
    np.testing.assert_allclose(first(images), backbone(images), atol=1e-5)

    tuned = keras.models.load_model(tmp_path / "1" / "encoder.keras")
    np.testing.assert_array_equal(tuned(images), backbone(images))
    assert tuned.trainable_variables


def probe_of(encoder, encoded):
    """A linear layer on an exported encoder."""
    inputs = (
        keras.Input((), dtype="string")
        if encoded
        else keras.Input((8, 8, 3), dtype="uint8")
    )
    return keras.Model(inputs, keras.layers.Dense(2)(encoder(inputs)))


@pytest.mark.parametrize("is_encoded", [False, True])
def test_a_model_on_an_export_is_saved_and_loaded(
    is_encoded, images, encoded, make_encoder, tmp_path, monkeypatch
):
    export_encoder(make_encoder(), tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    probe = probe_of(load_encoder("mine", encoded=is_encoded), is_encoded)
    given = tf.constant(encoded) if is_encoded else images
    expected = probe(given)
    probe.save("probe.keras")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file = tmp_path / "probe.keras"
    with pytest.raises(ValueError, match="safe_mode=False.*mine/1"):
        keras.models.load_model(file)
    loaded = keras.models.load_model(file, safe_mode=False)
    copy = keras.models.clone_model(probe)
    copy.set_weights(probe.get_weights())
    for model in (loaded, copy):
        # With a GPU, Keras would otherwise compile the decoding of files.
        assert model.layers[1].supports_jit != is_encoded
        np.testing.assert_allclose(model(given), expected, atol=1e-6)
        model.trainable = True
        assert len(model.trainable_variables) == 2
        model.compile(optimizer="sgd", loss="mse")
        batch = tf.data.Dataset.from_tensors((given, np.ones((16, 2))))
        before = model.get_weights()
        model.fit(batch, shuffle=False, verbose=0)
        changed = [
            (a != b).any()
            for a, b in zip(before, model.get_weights(), strict=True)
        ]
        assert sum(changed) == 2  # those of the dense layer
        np.testing.assert_allclose(
            model.predict(batch, verbose=0), model(given), atol=1e-5
        )


def test_weights_load_after_the_export_has_moved(
    images, make_encoder, tmp_path
):
    export_encoder(make_encoder(), tmp_path / "mine")
    probe = probe_of(load_encoder(tmp_path / "mine"), encoded=False)
    expected, file = probe(images), tmp_path / "probe.keras"
    probe.save(file)
    (tmp_path / "mine").rename(tmp_path / "yours")
    with pytest.raises(FileNotFoundError, match="where it was.*load_weights"):
        keras.models.load_model(file, safe_mode=False)
    probe = probe_of(load_encoder(tmp_path / "yours"), encoded=False)
    probe.load_weights(file)
    np.testing.assert_allclose(probe(images), expected, atol=1e-6)


@pytest.mark.parametrize("nested", [False, True])
def test_an_export_is_fine_tuned_on_batches_of_any_size(
    nested, images, tmp_path
):
    """Only pre-training splits batch norm."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3)(inputs)
    x = moco_keras.SplitBatchNormalization(4)(x)
    x = keras.layers.Conv2D(6, 3)(x)
    x = moco_keras.SplitBatchNormalization(synchronized=True)(x)
    backbone = keras.Model(inputs, keras.layers.ReLU()(x))
    if nested:
        backbone = keras.Model(inputs, keras.Sequential([backbone])(inputs))
    encoder = moco_keras.build_encoder(backbone, 8, 4)
    expected = moco_keras.backbone(encoder)(images)
    folder = export_encoder(encoder, tmp_path)
    tuned = keras.models.load_model(folder / "encoder.keras")
    np.testing.assert_allclose(tuned(images), expected, atol=1e-6)
    norms = [
        layer
        for layer in model_state.layers(tuned)
        if isinstance(layer, moco_keras.SplitBatchNormalization)
    ]
    assert [(x.splits, x.synchronized) for x in norms] == [(1, False)] * 2
    tuned.trainable = True
    classifier = keras.Sequential([tuned, keras.layers.Dense(2)])
    classifier.compile(optimizer=keras.optimizers.SGD(0.01), loss="mse")
    before = [norm.moving_mean.numpy() for norm in norms]
    history = classifier.fit(
        images[:15], np.ones((15, 2)), batch_size=6, epochs=3, verbose=0
    )
    assert history.history["loss"][2] < history.history["loss"][0]
    for norm, mean in zip(norms, before, strict=True):
        assert (norm.moving_mean.numpy() != mean).any()


@keras.saving.register_keras_serializable(package="test_export")
class Forgetful(keras.layers.Layer):
    """Multiplies by a number that its file does not hold."""

    factor = 1.0

    def call(self, inputs):
        return inputs * self.factor


@keras.saving.register_keras_serializable(package="test_export")
class Random(keras.layers.Layer):
    """Adds noise, in inference too."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed = keras.random.SeedGenerator()

    def call(self, inputs):
        shape = keras.ops.shape(inputs)
        return inputs + keras.random.normal(
            shape, dtype=inputs.dtype, seed=self.seed
        )


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Forgetful, "`encoder.keras` of an export must return what"),
        (Random, "`serving_default` of an export must return what"),
    ],
)
def test_an_export_that_differs_from_its_encoder_is_refused(
    layer, message, precision, tmp_path
):
    keras.config.set_dtype_policy(precision)
    layer = layer()
    layer.factor = 3.0
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3)(layer(inputs))
    encoder = moco_keras.build_encoder(keras.Model(inputs, x), 8, 4)
    with pytest.raises(ValueError, match=message):
        export_encoder(encoder, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_an_export_computes_in_float32(precision, kind, tmp_path):
    keras.config.set_dtype_policy(precision)
    encoder = moco_keras.build_encoder("resnet18", 8, width=4)
    folder = kind.export(encoder, tmp_path)
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    nodes = str(saved.meta_graphs[0].graph_def)
    assert "type: DT_FLOAT" in nodes
    assert "type: DT_HALF" not in nodes and "type: DT_BFLOAT16" not in nodes
    keras.config.set_dtype_policy("float32")
    (file,) = folder.glob("*.keras")
    layers = model_state.layers(keras.models.load_model(file))
    assert precision in {layer.dtype_policy.name for layer in layers}


def test_features_that_hardly_differ_are_exported_in_half_precision(
    images, tmp_path
):
    keras.config.set_dtype_policy("mixed_bfloat16")
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3)(inputs)
    x = keras.layers.Rescaling(0.001, offset=1)(x)  # 8 bits round it to 1
    encoder = moco_keras.build_encoder(keras.Model(inputs, x), 8, head="none")
    encoder.get_layer("features_bn").moving_mean.assign(np.ones(4))
    encoder.get_layer("features_bn").moving_variance.assign(np.full(4, 1e-6))
    export_encoder(encoder, tmp_path)
    found = load_encoder(tmp_path)(images).numpy()
    difference = found - encoder.predict(images, verbose=0).astype("float32")
    assert np.abs(difference).max() > 0.05 * np.abs(found).max()


def test_an_overflow_in_half_precision_is_not_exported(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    encoder = moco_keras.build_encoder("resnet6", 8, width=4)
    encoder.get_layer("stem_bn").gamma.assign([1e7] * 4)
    with pytest.raises(ValueError, match="must return numbers.*StopOnNaN"):
        export_encoder(encoder, tmp_path)


@pytest.mark.parametrize(
    ("precision", "tf32", "is_exported"),
    [
        ("float32", False, False),
        ("float32", True, True),
        ("mixed_bfloat16", False, True),
    ],
)
def test_coarse_rounding_allows_larger_differences(
    precision, tf32, is_exported, tmp_path, monkeypatch
):
    keras.config.set_dtype_policy(precision)
    monkeypatch.setattr(accelerators, "on_gpu", lambda: tf32)
    tf.config.experimental.enable_tensor_float_32_execution(tf32)
    try:
        layer = Forgetful()
        layer.factor = 1.005
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.Conv2D(4, 3, use_bias=False)(layer(inputs))
        encoder = moco_keras.build_encoder(keras.Model(inputs, x), 8, 4)
        if is_exported:
            export_encoder(encoder, tmp_path)
        else:
            with pytest.raises(ValueError, match="must return what the enc"):
                export_encoder(encoder, tmp_path)
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(False)


def test_a_model_that_returns_nan_is_not_exported(kind, make_encoder, tmp_path):
    encoder = make_encoder()
    encoder.weights[0].assign(np.full(encoder.weights[0].shape, np.nan))
    for path in (tmp_path, tmp_path / "new" / "folder"):
        with pytest.raises(ValueError, match="must return numbers.*StopOnNaN"):
            kind.export(encoder, path)
        assert not list(tmp_path.iterdir())


def test_a_full_or_read_only_disk(make_encoder, small_disk):
    folder, make_read_only = small_disk
    encoder = make_encoder()
    first = export_encoder(encoder, folder / "mine")
    before = {p: p.stat().st_mtime_ns for p in first.rglob("*")}
    for fill in (700_000, 900_000, 2_000_000):
        with (folder / "fill").open("wb") as file:
            with contextlib.suppress(OSError):
                file.write(bytes(fill))
        with pytest.raises(OSError, match="No space left.*Nothing was export"):
            for _ in range(9):
                export_encoder(encoder, folder / "new")
        shutil.rmtree(folder / "new", ignore_errors=True)
    make_read_only()
    with pytest.raises(OSError, match="Read-only file system.*Make it writa"):
        export_encoder(encoder, folder / "mine")
    assert before == {p: p.stat().st_mtime_ns for p in first.rglob("*")}
    assert {path.name for path in folder.iterdir()} == {"mine", "fill"}
    assert [path.name for path in (folder / "mine").iterdir()] == ["1"]


@pytest.mark.parametrize("version", [None, 3])
def test_a_missing_version_is_not_loaded(make_encoder, tmp_path, version):
    if version:
        export_encoder(make_encoder(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"There are (none|\[1\])"):
        load_encoder(tmp_path, version)


def truncate(contents):
    return contents[: len(contents) // 2]


def flip_a_bit(contents):
    """Flips one bit in the middle."""
    middle = len(contents) // 2
    return (
        contents[:middle]
        + bytes([contents[middle] ^ 16])
        + contents[middle + 1 :]
    )


def test_the_error_names_a_damaged_export(make_encoder, tmp_path):
    folder = export_encoder(make_encoder(), tmp_path)
    data = "variables/variables.data-00000-of-00001"
    for name, damage in [
        (data, truncate),
        (data, flip_a_bit),
        ("variables/variables.index", truncate),
        ("saved_model.pb", truncate),
        ("saved_model.pb", lambda contents: contents[:-1]),
    ]:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(damage(whole))
        with pytest.raises(ValueError, match="export it again.*export") as info:
            load_encoder(tmp_path)
        assert f"{folder}, which is damaged" in str(info.value)
        assert "{{" not in str(info.value)
        (folder / name).write_bytes(whole)
    assert load_encoder(tmp_path) is not None


def test_a_server_warms_up_with_both_signatures(kind, make_encoder, tmp_path):
    from tensorflow_serving.apis import prediction_log_pb2

    folder = kind.export(make_encoder(), tmp_path)
    signatures = tf.saved_model.load(folder).signatures
    seen = []
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    for record in tf.data.TFRecordDataset(path):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        inputs = {
            name: tf.constant(tf.make_ndarray(proto))
            for name, proto in request.inputs.items()
        }
        name = request.model_spec.signature_name
        embedding = signatures[name](**inputs)[kind.result].numpy()
        assert np.isfinite(embedding).all()
        seen.append((name, *embedding.shape))
    assert sorted(seen) == [
        ("serve_encoded", 1, 6),
        ("serve_encoded", 32, 6),
        ("serving_default", 1, 6),
        ("serving_default", 32, 6),
    ]


def test_an_export_does_not_need_tensorflow_serving(
    make_encoder, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    folder = export_encoder(make_encoder(), tmp_path)
    assert not (folder / "assets.extra").exists()
    assert (folder / "saved_model.pb").exists()


def test_versions_count_up_and_are_not_overwritten(
    kind, make_encoder, tmp_path
):
    encoder = make_encoder()
    assert kind.export(encoder, tmp_path, version=7).name == "7"
    assert kind.export(encoder, tmp_path).name == "8"
    assert kind.export(encoder, tmp_path, version=np.int64(2)).name == "2"
    assert kind.export(encoder, tmp_path).name == "9"
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(FileExistsError, match="Nothing was overwritten"):
        kind.export(encoder, tmp_path, version=7)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}


# Exports, but waits once a file of the new version exists, before Python opens
# or renames another one, since most moments are too short to be met from
# outside.
KILLED = """
import keras, moco_keras, os, sys, time
_, encoder, folder, file_name = sys.argv
model = keras.models.load_model(encoder)
def wait_to_be_killed(event, args):
    if event in ("open", "os.rename") and any(
        ".partial-" in path and file_name in (*folders, *files)
        for path, folders, files in os.walk(folder)
    ):
        time.sleep(100)
sys.addaudithook(wait_to_be_killed)
print("now", flush=True)
moco_keras.export_encoder(model, folder)
"""


@pytest.mark.slow
@pytest.mark.parametrize("file_name", ["variables", "README.md"])
def test_a_killed_export_leaves_no_broken_version(
    file_name, make_encoder, tmp_path
):
    """It is killed once its first or last file exists.

    A server reads numbered folders only.
    """
    encoder, exports = make_encoder(), tmp_path / "exports"
    encoder.save(tmp_path / "encoder.keras")
    export_encoder(encoder, exports)
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", KILLED),
            *(tmp_path / "encoder.keras", exports, file_name),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout.readline() == b"now\n"

    def exists():  # `glob` fails if a folder vanishes meanwhile
        return any(
            ".partial-" in folder and file_name in (*folders, *files)
            for folder, folders, files in os.walk(exports)
        )

    while not exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [path.name for path in exports.glob("[0-9]*")] == ["1"]
    tf.saved_model.load(exports / "1")
    again = export_encoder(encoder, exports)
    assert again.name.isdecimal() and (again / "saved_model.pb").exists()
    assert all(path.name.isdecimal() for path in exports.iterdir())


@pytest.mark.slow
def test_simultaneous_exports_get_separate_versions(make_encoder, tmp_path):
    make_encoder().save(tmp_path / "encoder.keras")
    program = (
        "import sys, keras, moco_keras\n"
        "encoder = keras.models.load_model(sys.argv[2])\n"
        "print('now', flush=True)\n"
        "input()\n"
        "for _ in range(3): moco_keras.export_encoder(encoder, sys.argv[1])\n"
    )
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-c", program),
                *(tmp_path / "new", tmp_path / "encoder.keras"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == b"now\n"
    for process in processes:
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    folders = list((tmp_path / "new").iterdir())
    assert {path.name for path in folders} == set("123456")
    for folder in folders:
        tf.saved_model.load(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"version": 0}, "version=0"),
        ({"version": "new"}, "version='new'"),
        ({"output": "queue"}, "output='queue'"),
        ({"format": "pth"}, "one of onnx, litert, or None.*format='pth'"),
    ],
)
def test_bad_arguments_are_refused(make_encoder, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        export_encoder(make_encoder(), tmp_path / "saved", **arguments)
    assert not (tmp_path / "saved").exists()


def encoder_of(scale):
    pooling = keras.layers.GlobalAveragePooling2D(name="features")
    return keras.Sequential([keras.Input((8, 8, 3)), scale, pooling])


@pytest.mark.parametrize(
    "scale",
    [
        keras.layers.Identity(),
        keras.layers.Rescaling(1 / 255, name="mine"),
        keras.layers.Normalization(mean=0.5, variance=0.1),
    ],
)
def test_an_encoder_with_another_range_of_pixels_is_refused(scale, tmp_path):
    with pytest.raises(
        ValueError, match="range is unknown. Build.*build_encoder"
    ):
        export_encoder(encoder_of(scale), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_an_encoder_may_be_sequential(images, tmp_path):
    scale = keras.layers.Rescaling(1 / 255, name="normalization")
    export_encoder(encoder_of(scale), tmp_path)
    np.testing.assert_allclose(
        load_encoder(tmp_path)(images),
        np.mean(images / 255, axis=(1, 2)),
        rtol=0,
        atol=1e-5,
    )


def test_a_projection_needs_a_head(make_encoder, tmp_path):
    backbone = moco_keras.backbone(make_encoder())
    with pytest.raises(ValueError, match="must have a head"):
        export_encoder(backbone, tmp_path / "no", output="projection")
    assert not (tmp_path / "no").exists()


def test_an_encoder_of_images_of_any_size_is_refused(tmp_path):
    inputs = keras.Input((None, None, 3))
    encoder = keras.Model(
        inputs, keras.layers.GlobalAveragePooling2D(name="features")(inputs)
    )
    with pytest.raises(ValueError, match="images of one size.*None, None, 3"):
        export_encoder(encoder, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@keras.saving.register_keras_serializable(package="test_export")
class OnAnExport(keras.Model):
    """A model that does not declare its inputs."""

    def __init__(self, encoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder, self.head = encoder, keras.layers.Dense(3)

    def call(self, images):
        return self.head(self.encoder(images))

    def get_config(self):
        return {"encoder": keras.saving.serialize_keras_object(self.encoder)}

    @classmethod
    def from_config(cls, config):
        encoder = config["encoder"]
        return cls(keras.saving.deserialize_keras_object(encoder))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sequential", "subclassed"])
def test_models_of_any_kind_may_hold_an_export(
    make_encoder, images, tmp_path, kind
):
    export_encoder(make_encoder(), tmp_path / "e")
    encoder = moco_keras.load_encoder(tmp_path / "e")
    if kind == "sequential":
        model = keras.Sequential([encoder, keras.layers.Dense(3)])
    else:
        model = OnAnExport(encoder)
    model.trainable = True
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    model.fit(images, np.arange(16) % 3, verbose=0)
    assert len(model.trainable_weights) == 2  # the head's
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=False)
    np.testing.assert_array_equal(
        loaded.predict(images, verbose=0), model.predict(images, verbose=0)
    )


def test_an_export_takes_only_whole_numbers(make_encoder, images, tmp_path):
    export_encoder(make_encoder(), tmp_path)
    encoder = moco_keras.load_encoder(tmp_path)
    np.testing.assert_array_equal(
        encoder(images.astype("float32")), encoder(images)
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="whole numbers"):
        encoder(images / np.float32(255))
