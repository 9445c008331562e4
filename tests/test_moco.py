import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from tensorflow.core.framework import dataset_options_pb2

import moco_keras
from moco_keras import (
    MoCo,
    MomentumUpdate,
    augmentations,
    distribution,
    optimizers,
)
from moco_keras.data import inputs
from moco_keras.distribution import accelerators
from moco_keras.pixel_format import RGB

# For what asks which of them there is. Each part has fast tests of both.
_KINDS = ["cpu", pytest.param("gpu", marks=pytest.mark.slow)]
_BOTH = pytest.mark.parametrize("accelerator", _KINDS, indirect=True)


def pairs(count=2, batch=4, seed=0):
    """A data set of `count` batches of ready views."""
    rng = np.random.default_rng(seed)
    views = rng.uniform(0, 255, (2, count * batch, 8, 8, 3)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((views[0], views[1])).batch(batch)


def weights(model):
    return [w.numpy() for w in model.weights]


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_loss_matches_the_paper(make_model, symmetric):
    model = make_model(symmetric=symmetric, shuffle="none")
    queue = model.queue.keys.numpy()
    ((im_1, im_2),) = pairs(1)
    encode = [
        lambda x: unit(model.query_encoder(x, training=True).numpy()),
        lambda x: unit(model.key_encoder(x, training=True).numpy()),
    ]
    expected = reference.info_nce(encode[0](im_1), encode[1](im_2), queue, 0.2)
    enqueued = [encode[1](im_2)]
    if symmetric:
        second = reference.info_nce(
            encode[0](im_2), encode[1](im_1), queue, 0.2
        )
        expected = expected + second
        enqueued = [encode[1](im_1), encode[1](im_2)]
    history = model.fit(pairs(1), verbose=0).history
    assert history["loss"][0] == pytest.approx(expected.mean(), rel=1e-5)
    rows = np.concatenate(enqueued)
    np.testing.assert_allclose(
        model.queue.keys.numpy()[: len(rows)], rows, atol=1e-5
    )
    assert int(model.queue.pointer) == len(rows)


def test_momentum_0_copies_and_1_keeps(make_model):
    copies, keeps = make_model(momentum=0.0), make_model(momentum=1.0)
    before = keeps.key_encoder.get_weights()
    for model in (copies, keeps):
        model.fit(pairs(3), verbose=0)
    key, query = copies.key_encoder, copies.query_encoder
    trained = zip(
        key.trainable_variables, query.trainable_variables, strict=True
    )
    for k, q in trained:
        np.testing.assert_array_equal(k, q)
    for k, old in zip(keeps.key_encoder.weights, before, strict=True):
        if k.trainable:
            np.testing.assert_array_equal(k, old)
        else:
            assert not np.array_equal(k, old), k.path
    q = keeps.query_encoder.trainable_variables[0]
    assert not np.array_equal(q, before[0])


def test_moving_statistics_are_not_averaged(make_model):
    model = make_model(momentum=0.5)
    model.key_encoder.set_weights(
        [w if w.ndim > 1 else w + 3 for w in model.key_encoder.get_weights()]
    )
    before = model.key_encoder.get_weights()
    model.optimizer.build(model.trainable_variables)
    callback = MomentumUpdate()
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_train_batch_end(0)
    both = zip(
        model.key_encoder.weights,
        before,
        model.query_encoder.get_weights(),
        strict=True,
    )
    for k, old, q in both:
        expected = (old + q) / 2 if k.trainable else old
        np.testing.assert_allclose(k, expected, rtol=1e-6)


def test_momentum_follows_a_schedule(make_model):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [1], [1.0, 0.0]
    )
    model = make_model(momentum=schedule)
    first = model.key_encoder.get_weights()[0]
    model.fit(pairs(1), verbose=0)
    np.testing.assert_array_equal(model.key_encoder.get_weights()[0], first)
    model.fit(pairs(1), verbose=0)
    np.testing.assert_array_equal(
        model.key_encoder.get_weights()[0], model.query_encoder.get_weights()[0]
    )


@pytest.mark.parametrize("symmetric", [False, True])
def test_no_gradient_reaches_the_key_encoder(
    make_model, monkeypatch, symmetric
):
    model = make_model(momentum=1.0, symmetric=symmetric)
    model.compile(optimizer=optimizers.SGD(0.1), run_eagerly=True)
    gradients = {}

    def apply_gradients(tape, loss):
        variables = [
            [v.value for v in encoder.trainable_variables]
            for encoder in (model.key_encoder, model.query_encoder)
        ]
        gradients["key"], gradients["query"] = tape.gradient(loss, variables)

    monkeypatch.setattr(model, "apply_gradients", apply_gradients)
    model.fit(pairs(1), verbose=0)
    assert gradients["key"] == [None] * len(gradients["key"])
    assert all(np.any(g) for g in gradients["query"])


@pytest.mark.slow
@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize(
    ("ready_pairs", "splits", "accelerator"),
    [(True, 1, "cpu"), (False, 2, "cpu"), (False, 2, "gpu")],
    indirect=["accelerator"],
)
def test_save_load_train_equals_train(
    make_model, images, tmp_path, splits, ready_pairs
):
    optimizer = optimizers.SGD(
        moco_keras.schedules.EpochCosine(0.1, steps_per_epoch=2, epochs=6)
    )
    model = make_model(splits, optimizer, symmetric=True)
    if ready_pairs:
        data = pairs(4)
    else:
        data = tf.data.Dataset.from_tensor_slices(images).batch(4)
    model.fit(data, epochs=2, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    numbers = ("queue_size", "momentum", "temperature", "symmetric", "shuffle")
    for name in numbers:
        assert loaded.get_config()[name] == model.get_config()[name]
    for a, b in zip(weights(model), weights(loaded), strict=True):
        np.testing.assert_array_equal(a, b)
    histories = [
        m.fit(data, epochs=2, verbose=0).history for m in (model, loaded)
    ]
    assert histories[0] == histories[1]
    for a, b in zip(weights(model), weights(loaded), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(
        model.predict(images, verbose=0), loaded.predict(images, verbose=0)
    )


def with_labels(images):
    return tf.data.Dataset.from_tensor_slices((images, np.zeros(len(images))))


@_BOTH
@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize(
    "form",
    [
        lambda x: x,
        lambda x: tf.data.Dataset.from_tensor_slices(x).batch(8),
        lambda x: with_labels(x).batch(8),
        lambda x: (
            with_labels(x)
            .map(lambda image, label: {"image": image, "label": label})
            .batch(8)
        ),
        lambda x: (x.astype("float32"), x[::-1].astype("float32")),
        lambda x: tf.data.Dataset.from_tensor_slices(
            (x.astype("float32"), x[::-1].astype("float32"))
        ).batch(8),
    ],
    ids=["array", "images", "labelled", "dicts", "views", "view_batches"],
)
def test_fit_accepts(make_model, images, form):
    model, data = make_model(queue_size=24), form(images)
    batch_size = None if isinstance(data, tf.data.Dataset) else 8
    history = model.fit(
        data, batch_size=batch_size, epochs=2, verbose=0
    ).history
    assert np.isfinite(history["loss"]).all()
    assert int(model.queue.pointer) == 8  # 4 steps of 8 keys in a queue of 24


def test_fit_ignores_labels_of_an_array_and_drops_the_last_batch(
    make_model, images
):
    model = make_model()
    model.fit(images, np.zeros(16), batch_size=5, verbose=0)
    assert int(model.queue.pointer) == 15


def test_learning_rate_0_keeps_the_query_encoder(make_model, images):
    model = make_model(optimizer=optimizers.SGD(0.0))
    before = [v.numpy() for v in model.trainable_variables]
    model.fit(images, batch_size=8, verbose=0)
    for v, old in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(v, old)


def test_predict_returns_unit_projections_at_any_image_size(make_model, images):
    model = make_model()
    projections = model.predict(images, verbose=0)
    assert projections.shape == (16, 4)
    lengths = np.linalg.norm(projections, axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    larger = model.predict(images.repeat(2, axis=1), verbose=0)
    assert larger.shape == (16, 4)


def test_an_encoder_may_take_any_image_size(rng):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3)(inputs)
    encoder = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    model = MoCo(encoder, augmentations.cifar(8), queue_size=32)
    model.compile(optimizer=optimizers.SGD(0.01))
    images = rng.integers(0, 256, (8, 10, 14, 3), "uint8")
    model.fit(images, batch_size=4, verbose=0)
    assert model.predict(images, verbose=0).shape == (8, 4)


def test_mixed_precision_keeps_queue_and_loss_in_float32(images):
    keras.config.set_dtype_policy("mixed_bfloat16")
    encoder = moco_keras.build_encoder("resnet18", 8, 4, width=4)
    model = MoCo(encoder, augmentations.cifar(8), queue_size=32)
    model.compile(optimizer=optimizers.SGD(0.01))
    model.fit(images, batch_size=8, verbose=0)
    assert model.queue.keys.dtype == "float32"
    assert model._loss.dtype == "float32"
    assert encoder.layers[3].compute_dtype == "bfloat16"
    assert model.predict(images, verbose=0).dtype == "float32"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"queue_size": 0}, "positive integer.*size=0"),
        ({"temperature": 0.0}, "positive.*temperature=0.0"),
        ({"temperature": -1}, "positive.*temperature=-1"),
        ({"momentum": 1.1}, r"in \[0, 1\].*momentum=1.1"),
        ({"momentum": -0.1}, r"in \[0, 1\].*momentum=-0.1"),
        ({"shuffle": "auto"}, "shuffle='auto'"),
    ],
)
def test_bad_settings(make_model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_model(**kwargs)


def test_encoder_must_return_vectors():
    inputs = keras.Input((8, 8, 3))
    encoder = keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs))
    with pytest.raises(
        ValueError, match=r"one vector an image.*\(None, 6, 6, 4"
    ):
        MoCo(encoder)


def test_encoder_must_fit_the_images(make_encoder, images):
    model = MoCo(make_encoder(), augmentations.cifar(16), queue_size=32)
    model.compile(optimizer=optimizers.SGD(0.1))
    with pytest.raises(ValueError, match=r"\(8, 8, 3\).*\(16, 16, 3\)"):
        model.fit(images, batch_size=8, verbose=0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x: x[..., :1], "1 channels.*Repeat the channel"),
        (
            lambda x: np.concatenate([x, x[..., :1]], axis=-1),
            "4 channels.*Drop the alpha",
        ),
        (lambda x: x.astype("float32") / 255, r"dtype=float32.*255 \* images"),
        (
            lambda x: np.array([x[0], x[0, :4]] * 8, dtype=object),
            "unequal sizes.*two_views",
        ),
        (lambda x: x[0], r"shape=\(8, 8, 3\).*images\[None\]"),
        (lambda x: tf.data.Dataset.from_tensor_slices(x), "Batch them"),
        (
            lambda x: tf.data.Dataset.from_tensor_slices({"picture": x}).batch(
                8
            ),
            "\"image\".*'picture'",
        ),
        (
            lambda x: tf.data.Dataset.from_tensors(
                tf.ragged.constant([[[[1] * 3]], [[[1] * 3] * 2]], tf.uint8)
            ),
            "unequal sizes",
        ),
    ],
)
def test_bad_images(make_model, images, bad, message):
    data = bad(images)
    with pytest.raises(ValueError, match=message):
        make_model().fit(data, verbose=0)


@pytest.mark.parametrize("batch", [False, True])
def test_masks_are_not_views(make_model, images, batch):
    pair = images, images
    message = "pair of uint8.*8, 8, 3.*masks or targets.*image, mask: image"
    with pytest.raises(ValueError, match=message):
        if batch:
            make_model().train_on_batch(pair)
        else:
            data = tf.data.Dataset.from_tensor_slices(pair).batch(8)
            make_model().fit(data, verbose=0)


def test_masks_of_a_generator_are_not_views(make_model, images):
    model = make_model()
    with pytest.raises(ValueError, match="masks or targets"):
        pairs = (pair for pair in [(images, images)])
        model.fit(pairs, steps_per_epoch=1, verbose=0)


def test_a_summary_counts_all_parameters(make_model):
    model, lines = make_model(), []
    model.summary(print_fn=lines.append, line_length=200)
    (encoder, key_encoder) = (
        e.count_params() for e in (model.query_encoder, model.key_encoder)
    )
    queue = 32 * 4 + 1
    trainable = sum(np.prod(v.shape) for v in model.trainable_variables)
    text = "\n".join(lines)
    assert encoder == key_encoder
    assert f"Trainable params: {trainable} " in text
    other = encoder + key_encoder + queue + 1 - trainable
    assert f"Non-trainable params: {other} " in text


@pytest.mark.parametrize("form", ["dicts", "labelled"])
def test_predict_accepts_the_data_sets_of_fit(make_model, images, form):
    model = make_model()
    data = {
        "dicts": {"image": images, "label": np.zeros(16)},
        "labelled": (images, np.zeros(16)),
    }[form]
    data = tf.data.Dataset.from_tensor_slices(data).batch(8)
    np.testing.assert_allclose(
        model.predict(data, verbose=0),
        model.predict(images, verbose=0),
        rtol=0,
        atol=1e-6,
    )


def test_bad_images_in_predict(make_model, images):
    with pytest.raises(ValueError, match="dtype=float32"):
        make_model().predict(images / np.float32(255), verbose=0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 17}, "batch_size=17, 16 images"),
    ],
)
def test_bad_arguments_of_fit(make_model, images, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_model().fit(images, verbose=0, **kwargs)


def test_batch_must_fit_the_queue(make_model, images):
    with pytest.raises(ValueError, match="queue_size=7, keys of one step=8"):
        make_model(queue_size=7).fit(images, batch_size=8, verbose=0)
    with pytest.raises(ValueError, match="queue_size=15, keys of one step=16"):
        make_model(queue_size=15, symmetric=True).fit(
            images, batch_size=8, verbose=0
        )


@pytest.mark.parametrize("strategy", ["mirrored", "one device"])
def test_a_strategy_of_one_replica_trains(strategy, make_model, images):
    strategy = {
        "mirrored": tf.distribute.MirroredStrategy,
        "one device": tf.distribute.OneDeviceStrategy,
    }[strategy](["/cpu:0"] if strategy == "mirrored" else "/cpu:0")
    with strategy.scope():
        model = make_model()
    model.fit(images, batch_size=8, verbose=0)
    assert int(keras.ops.convert_to_numpy(model.steps)) == 2


def test_fit_warns_of_an_unused_gpu(make_model, images, monkeypatch):
    warned = []
    monkeypatch.setattr(
        accelerators, "warn_of_unused_gpu", lambda: warned.append("fit")
    )
    make_model().fit(images, batch_size=8, verbose=0)
    assert warned == ["fit"]


@_BOTH
@pytest.mark.usefixtures("accelerator")
def test_batches_are_read_without_autotuning(images):
    """Options set earlier do not reach past `prefetch_to_device`."""
    strategy = distribution.strategy("none")
    dataset = inputs.training_batches(images, 8, strategy, RGB).read(
        0, True, 0, 0, 0
    )
    # What TensorFlow uses; `dataset.options()` is only Python's record.
    options = dataset_options_pb2.Options.FromString(
        tf.raw_ops.GetOptions(input_dataset=dataset._variant_tensor).numpy()
    )
    assert options.autotune_options.WhichOneof("optional_enabled")
    assert not options.autotune_options.enabled


def test_several_steps_per_execution_are_refused(make_model, images):
    model = make_model()
    model.compile(optimizer=optimizers.SGD(0.1), steps_per_execution=2)
    with pytest.raises(ValueError, match="must be 1.*steps_per_execution=2"):
        model.fit(images, batch_size=8, verbose=0)


def test_an_augmenter_is_needed_for_images(make_encoder, images):
    model = MoCo(make_encoder(), queue_size=32)
    model.compile(optimizer=optimizers.SGD(0.1))
    with pytest.raises(ValueError, match="needs an `augmenter`"):
        model.fit(images, batch_size=8, verbose=0)


@_BOTH
@pytest.mark.usefixtures("accelerator")
def test_arrays_are_not_copied(images, tmp_path):
    """A memory-mapped file need not fit in memory."""
    np.save(tmp_path / "images.npy", images)
    on_disk = np.load(tmp_path / "images.npy", mmap_mode="r+")
    strategy = distribution.strategy("none")
    batches = inputs.training_batches(on_disk, 8, strategy, RGB)
    on_disk[:] = 7
    for batch in batches.read(0, False, 0, 0, 0).take(batches.steps):
        np.testing.assert_array_equal(batch, np.full((8, 8, 8, 3), 7, "uint8"))


@_BOTH
@pytest.mark.usefixtures("accelerator")
def test_every_epoch_has_its_own_order_from_the_seed():
    images = np.arange(14, dtype="uint8")[:, None, None, None]
    images = np.broadcast_to(images, (14, 8, 8, 3))

    def orders(seed=None, began=0, taken=0):
        strategy = distribution.strategy("none")
        batches = inputs.training_batches(images, 4, strategy, RGB)
        assert (batches.steps, batches.batch_size, batches.num_images) == (
            3,
            4,
            14,
        )
        batches = batches.read(seed, seed is not None, began, taken, 0).take(6)
        rows = [x[0, 0, 0].numpy() for batch in batches for x in batch]
        return rows[:12], rows[12:]

    first, second = orders(seed=3)
    assert len(set(first)) == len(set(second)) == 12
    assert first != second and first != sorted(first)
    assert orders(seed=3) == (first, second)
    assert orders(seed=4)[0] != first
    # Another `fit` begins the next pass; a resumed one continues its own.
    for began in (1, 3):
        assert orders(seed=3, began=began)[0] == second
    resumed, _ = orders(seed=3, taken=2)
    assert resumed == first[8:] + second[:8]
    assert (
        orders(seed=3, began=1, taken=1)[0]
        == second[4:] + orders(seed=3, began=4)[0][:4]
    )
    assert orders()[1] == list(range(12))


@pytest.mark.parametrize("shape", [(8, 8), (9, 12)])
def test_export_returns_what_predict_does(shape, rng, make_model, tmp_path):
    model = make_model()
    images = rng.integers(0, 256, (5, *shape, 3), "uint8")
    model.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "saved")
    embeddings = loaded.serve(images)
    assert embeddings.dtype == "float32"
    np.testing.assert_allclose(
        embeddings, model.predict(images, verbose=0), rtol=0, atol=1e-5
    )
    held = [v for v in loaded.variables if v.dtype == "float32"]
    assert len(held) == len(model.query_encoder.variables)


def test_an_encoder_of_non_square_images_is_exported(rng, tmp_path):
    inputs = keras.Input((8, 12, 3))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    model = moco_keras.MoCo(keras.Model(inputs, x), queue_size=32)
    images = rng.integers(0, 256, (5, 8, 12, 3), "uint8")
    model.export(tmp_path / "saved", verbose=False)
    np.testing.assert_allclose(
        tf.saved_model.load(tmp_path / "saved").serve(images),
        model.predict(images, verbose=0),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("format", ["onnx", "litert"])
def test_other_formats_need_export_encoder(format, make_model, tmp_path):
    with pytest.raises(ValueError, match=f"{format}.*export_encoder"):
        make_model().export(tmp_path / "saved", format=format)
    assert not (tmp_path / "saved").exists()
