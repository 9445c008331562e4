import keras
import numpy as np
import pytest
import pytorch
import tensorflow as tf

from moco_keras import (
    SplitBatchNormalization,
    build_encoder,
    group_encoding,
    shuffle_bn,
)

pytestmark = pytest.mark.usefixtures("accelerator")


@pytest.mark.parametrize("splits", [1, 2, 8])
def test_split_batch_norm_matches_the_notebook(splits):
    fixture = pytorch.load("batch_norm")
    expected = pytorch.part(fixture, str(splits))
    layer = SplitBatchNormalization(splits)
    x, later = (tf.constant(inputs) for inputs in fixture["inputs"])
    layer.build(x.shape)
    layer.gamma.assign(fixture["gamma"])
    layer.beta.assign(fixture["beta"])
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = layer(x, training=True)
        loss = tf.reduce_sum(outputs * fixture["targets"])
    gradients = tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])
    layer(later, training=True)
    results = {
        "outputs": outputs,
        "gradient": gradients[0],
        "gamma_gradient": gradients[1],
        "beta_gradient": gradients[2],
        "moving_mean": layer.moving_mean,
        "moving_variance": layer.moving_variance,
        "inference": layer(x),
    }
    for name, value in results.items():
        np.testing.assert_allclose(
            value,
            expected[name],
            rtol=0,
            atol=1e-5 * max(1, np.abs(expected[name]).max()),
            err_msg=name,
        )


def test_inference_accepts_any_batch_size(rng):
    layer = SplitBatchNormalization(splits=8)
    x = rng.normal(size=(3, 2, 2, 2)).astype("float32")
    np.testing.assert_allclose(layer(x), x, rtol=1e-4)


def test_splits_must_divide_the_batch():
    with pytest.raises(ValueError, match="splits=3, batch_size=4"):
        SplitBatchNormalization(3)(np.ones((4, 2, 2, 1)), training=True)


def test_splits_must_divide_a_batch_known_only_when_it_runs():
    layer = SplitBatchNormalization(3)
    layer.build((None, 2, 2, 1))

    @tf.function(input_signature=[tf.TensorSpec((None, 2, 2, 1))])
    def run(x):
        return layer(x, training=True)

    assert run(tf.ones((6, 2, 2, 1))).shape == (6, 2, 2, 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must_divide"):
        run(tf.ones((4, 2, 2, 1)))


def test_gradients_of_groups_are_added_in_their_order(rng):
    """So that a training run repeats to the bit."""
    images = tf.constant(rng.normal(size=(8, 8, 8, 3)), "float32")
    norm, dense = SplitBatchNormalization(8), keras.layers.Dense(1)
    inputs = keras.Input((8, 8, 3))
    encoder = keras.Model(inputs, dense(keras.layers.Flatten()(norm(inputs))))

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(group_encoding.encode(encoder, images))
        return tape.gradient(total, dense.kernel.value)

    # The gradient of one image is the input that `dense` gets.
    parts = np.reshape(norm(images, training=True), (8, -1))
    expected = parts[0]
    for part in parts[1:]:
        expected = expected + part
    assert not np.array_equal(expected, sum(parts[::-1]))
    np.testing.assert_array_equal(gradient()[:, 0], expected)


def test_groups_have_their_own_dropout(accelerator):
    x = inputs = keras.Input((8, 8, 3))
    x = SplitBatchNormalization(2)(x)
    dropout = keras.layers.Dropout(0.5, seed=1)
    encoder = keras.Model(inputs, keras.layers.Flatten()(dropout(x)))
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 3))
    four = np.repeat(image, 4, axis=0)
    first, second = group_encoding.encode(encoder, four)[::2]
    assert not np.array_equal(first == 0, second == 0)
    calls = {"cpu": 2, "gpu": 1}[accelerator]
    assert dropout.seed_generator.state.numpy().tolist() == [1, calls]


def _train(encoder, encode, images):
    """Outputs, gradients and state after a call in training, by name."""
    with tf.GradientTape() as tape:
        outputs = encode(images)
        loss = tf.reduce_sum(outputs**2)
    gradients = tape.gradient(loss, encoder.trainable_variables)
    values = {"outputs": outputs}
    for v, gradient in zip(encoder.trainable_variables, gradients, strict=True):
        values[f"gradient of {v.path}"] = tf.convert_to_tensor(gradient)
    for v in encoder.non_trainable_variables:
        values[v.path] = tf.convert_to_tensor(v)
    return values


def _encoder_of(norms):
    x = inputs = keras.Input((8, 8, 3))
    for norm in norms:
        x = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(x)
        x = norm(x)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


@pytest.mark.parametrize(
    "make, calls",
    [
        (lambda: _encoder_of([SplitBatchNormalization(4) for _ in "ab"]), 4),
        (lambda: build_encoder("resnet18", 8, width=4, bn_splits=2), 2),
        # In one call: other groups would give other numbers.
        (lambda: _encoder_of(map(SplitBatchNormalization, (2, 4))), 1),
        (
            lambda: _encoder_of(
                [SplitBatchNormalization(2), keras.layers.BatchNormalization()]
            ),
            1,
        ),
    ],
)
def test_encoding_group_by_group_changes_nothing(make, calls, rng, accelerator):
    images = tf.constant(rng.uniform(0, 255, (8, 8, 8, 3)), "float32")
    grouped, whole = make(), make()
    whole.set_weights(grouped.get_weights())
    sizes = []
    grouped.layers[1].call = _recorded(grouped.layers[1].call, sizes)
    ours = _train(grouped, lambda x: group_encoding.encode(grouped, x), images)
    plain = _train(whole, lambda x: whole(x, training=True), images)
    if accelerator == "gpu":
        calls = 1
    assert sizes == calls * [8 // calls]
    for (name, value), expected in zip(
        ours.items(), plain.values(), strict=True
    ):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            value, expected, rtol=0, atol=1e-5 * scale, err_msg=name
        )


def _recorded(call, sizes):
    def record(x, *args, **kwargs):
        sizes.append(len(x))
        return call(x, *args, **kwargs)

    return record


@keras.saving.register_keras_serializable(package="test_shuffle_bn")
class Block(keras.layers.Layer):
    """A layer that contains a batch norm."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = SplitBatchNormalization(2)

    def call(self, x, training=False):
        return self.norm(x, training=training)


def test_batch_norms_nested_in_layers_see_whole_batches(rng):
    inputs = keras.Input((4, 4, 3))
    x = Block()(SplitBatchNormalization(2)(inputs))
    encoder = keras.Model(inputs, keras.layers.Flatten()(x))
    images = tf.constant(rng.normal(size=(8, 4, 4, 3)), "float32")
    expected = encoder(images, training=True)
    found = group_encoding.encode(encoder, images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_unshuffle_undoes_shuffle():
    images = np.arange(64.0).reshape(64, 1, 1, 1)
    seed = keras.random.SeedGenerator(0)
    shuffled, order = shuffle_bn.shuffle(images, seed)
    assert not np.array_equal(shuffled, images)
    again, _ = shuffle_bn.shuffle(images, seed)
    assert not np.array_equal(shuffled, again)
    np.testing.assert_array_equal(shuffle_bn.unshuffle(shuffled, order), images)
