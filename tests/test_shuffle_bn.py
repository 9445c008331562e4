import keras
import numpy as np
import pytest
import pytorch
import tensorflow as tf

from moco_keras import SplitBatchNormalization, shuffle_bn


@pytest.mark.parametrize("splits", [1, 2, 8])
def test_split_batch_norm_is_the_notebooks(splits):
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


def test_inference_takes_any_batch(rng):
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
