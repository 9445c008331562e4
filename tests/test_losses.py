import math

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

from moco_keras import KeyQueue, contrastive_logits, info_nce
from moco_keras.losses import contrastive_accuracy, fused_info_nce


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize("queue_size", [1, 7, 64])
def test_info_nce_is_equation_1(queue_size, temperature, rng):
    q, k = reference.unit_rows(rng, 5), reference.unit_rows(rng, 5)
    queue = reference.unit_rows(rng, queue_size)
    expected = reference.info_nce(q, k, queue, temperature)
    losses = info_nce(*contrastive_logits(q, k, queue, temperature))
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)


def test_equal_logits_cost_the_logarithm_of_their_number():
    losses = info_nce(keras.ops.zeros(2), keras.ops.zeros((2, 3)))
    np.testing.assert_allclose(losses, [math.log(4)] * 2, rtol=1e-6)


def test_accuracy_counts_queries_nearest_to_their_key():
    l_pos = np.array([0.9, 0.1], "float32")
    l_neg = np.array([[0.5, 0.8], [0.0, 0.2]], "float32")
    np.testing.assert_array_equal(contrastive_accuracy(l_pos, l_neg), [1, 0])


def test_the_fused_loss_is_equation_1_with_its_gradient(rng):
    temperature = 0.1
    queue = KeyQueue(size=7, dim=reference.unit_rows(rng, 1).shape[1])
    weights = np.array([1.0, -2.0, 0.0, 0.5, 3.0], "float32")
    for _ in range(3):  # the newest keys count too
        q, k, new = (reference.unit_rows(rng, 5) for _ in range(3))
        with tf.GradientTape() as tape:
            queries = tf.constant(q, "float32")
            tape.watch(queries)
            losses, correct = fused_info_nce(
                queries, tf.constant(k, "float32"), queue.keys, temperature
            )
            total = tf.reduce_sum(weights * losses)
        keys = queue.keys.numpy()
        expected = reference.info_nce(q, k, keys, temperature)
        np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
        for n, gradient in enumerate(tape.gradient(total, queries)):
            choices = np.vstack([k[n], keys]).astype("float64")
            similarities = choices @ q[n] / temperature
            probabilities = np.exp(similarities) / np.exp(similarities).sum()
            slope = (probabilities @ choices - k[n]) / temperature
            np.testing.assert_allclose(
                gradient, weights[n] * slope, rtol=1e-4, atol=1e-5
            )
            assert correct[n] == (similarities.argmax() == 0)
        queue.enqueue(tf.constant(new, "float32"))
