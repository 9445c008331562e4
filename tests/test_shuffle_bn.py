import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

from moco_keras import SplitBatchNormalization, shuffle_bn


@pytest.mark.parametrize("splits", [1, 2, 4])
def test_each_group_has_its_own_statistics(splits, rng):
    x = rng.normal(2, 3, (8, 5, 5, 3)).astype("float32")
    x[4:] *= 2
    layer = SplitBatchNormalization(splits)
    outputs = layer(x, training=True)
    expected, mean, variance = reference.batch_norm(x, splits, 1e-5)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    moving_mean, moving_variance = layer.moving_mean, layer.moving_variance
    np.testing.assert_allclose(moving_mean, 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(moving_variance, 0.9 + 0.1 * variance, rtol=1e-4)


def test_inference_uses_moving_statistics(rng):
    x = rng.normal(size=(3, 2, 2, 2)).astype("float32")
    layer = SplitBatchNormalization(splits=8)  # does not divide the batch
    layer.build(x.shape)
    layer.moving_mean.assign([1.0, 2.0])
    layer.moving_variance.assign([4.0, 9.0])
    layer.gamma.assign([2.0, 3.0])
    layer.beta.assign([0.5, -0.5])
    scale = np.array([2.0, 3.0]) / np.sqrt(np.array([4.0, 9.0]) + 1e-5)
    expected = (x - [1.0, 2.0]) * scale + [0.5, -0.5]
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("splits", [1, 2])
def test_gradient_is_that_of_the_definition(splits, rng):
    x = tf.constant(rng.normal(size=(4, 3, 3, 2)), "float32")
    target = tf.constant(rng.normal(size=(4, 3, 3, 2)), "float32")
    layer = SplitBatchNormalization(splits)
    layer.build(x.shape)

    def definition(x):
        groups = tf.reshape(x, (splits, -1, 3, 3, 2))
        mean, variance = tf.nn.moments(groups, (1, 2, 3), keepdims=True)
        groups = (groups - mean) / tf.sqrt(variance + 1e-5)
        return tf.reshape(groups, x.shape)

    gradients = []
    for function in (lambda x: layer(x, training=True), definition):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(function(x) * target)
        gradients.append(tape.gradient(loss, x))
    np.testing.assert_allclose(*gradients, rtol=1e-3, atol=1e-5)


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
    with pytest.raises(tf.errors.InvalidArgumentError, match="must divide"):
        run(tf.ones((4, 2, 2, 1)))


def test_unshuffle_undoes_shuffle():
    images = np.arange(64.0).reshape(64, 1, 1, 1)
    seed = keras.random.SeedGenerator(0)
    shuffled, order = shuffle_bn.shuffle(images, seed)
    assert not np.array_equal(shuffled, images)
    again, _ = shuffle_bn.shuffle(images, seed)
    assert not np.array_equal(shuffled, again)
    np.testing.assert_array_equal(shuffle_bn.unshuffle(shuffled, order), images)
