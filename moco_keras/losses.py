"""The contrastive loss: tensors in, tensors out."""

import tensorflow as tf
from keras import ops


def contrastive_logits(q, k, queue, temperature):
    """Similarities of each query with its own key and with the queue.

    Args:
        q: float32 (N, C), L2-normalized queries.
        k: float32 (N, C), L2-normalized keys; `k[n]` is the positive of `q[n]`.
        queue: float32 (K, C), L2-normalized keys of earlier batches.
        temperature: positive number that divides the cosine similarities.

    Returns:
        `l_pos` of shape (N,) and `l_neg` of shape (N, K), float32. They stay
        apart, since joining them would copy the large one for nothing.

    Reference:
        Algorithm 1 of [He et al., 2020](https://arxiv.org/abs/1911.05722).
    """
    # NumPy's float64 would not divide a float32. Dividing l_neg would write it
    # twice.
    q = q / ops.cast(temperature, q.dtype)
    l_pos = ops.sum(q * k, axis=1)  # (N,)
    l_neg = ops.matmul(q, ops.transpose(queue))  # (N, K)
    return l_pos, l_neg


def info_nce(l_pos, l_neg):
    """Softmax cross-entropy of each query with its own key as the answer.

    Args:
        l_pos: float32 (N,), logits of the positives.
        l_neg: float32 (N, K), logits of the negatives.

    Returns:
        Losses in nats, float32 (N,); log(1 + K) means nothing was learned.

    Reference:
        Equation 1 of [He et al., 2020](https://arxiv.org/abs/1911.05722).

    Example:
        >>> info_nce(np.zeros(2), np.zeros((2, 3)))  # log(4) = 1.386, twice
    """
    return ops.logaddexp(l_pos, ops.logsumexp(l_neg, axis=1)) - l_pos


def contrastive_accuracy(l_pos, l_neg):
    """Whether each query is nearer to its own key than to any in the queue.

    Args:
        l_pos: float32 (N,), logits of the positives.
        l_neg: float32 (N, K), logits of the negatives.

    Returns:
        float32 (N,) of zeros and ones.
    """
    return ops.cast(l_pos > ops.max(l_neg, axis=1), "float32")


def fused_info_nce(q, k, keys, temperature):
    """Loss, accuracy and gradient of the queries, compiled into one kernel.

    The logits never leave it. The keys are not copied: outside of the kernel,
    TensorFlow would copy the variable on each read, because `enqueue` writes
    part of it.

    Args:
        q: float32 (N, C), L2-normalized queries.
        k: float32 (N, C), L2-normalized keys, which get no gradient.
        keys: float32 (K, C), keys of earlier batches: a variable, or a tensor.
        temperature: positive number that divides the similarities.

    Returns:
        What `info_nce` and `contrastive_accuracy` return, float32 (N,) each.
    """

    @tf.function(jit_compile=True)
    def compute(q, k, temperature):
        with tf.GradientTape() as tape:
            tape.watch(q)
            logits = contrastive_logits(q, k, keys, temperature)
            losses = info_nce(*logits)
        return losses, contrastive_accuracy(*logits), tape.gradient(losses, q)

    @tf.custom_gradient
    def of_queries(q):
        losses, correct, gradient = compute(q, k, temperature)
        # A query's loss depends on no other query.
        return (losses, correct), lambda dy, _: dy[:, None] * gradient

    return of_queries(q)
