"""Encoding a batch group by group, as fast batch norm on a processor.

Split batch norm normalizes each of its groups, 32 images for example, by the
group's own statistics. The plain way is to run the encoder on the whole batch:
every one of its batch norms cuts the batch into groups, normalizes each, and
joins them again, a copy of all activations, twenty times in a ResNet-18.

But no layer ever looks from one group at another. So the encoder can as well be
run once for each group, on the group's images alone: the outputs are the same,
nothing is cut or joined, what a group needs stays in the processor's caches,
and the groups, which do not depend on each other, keep all cores at work.

Two things are still shared by the groups, and are put together at the end: each
batch norm's moving statistics follow the mean of all groups, and each weight's
gradient is the sum of the groups', added up in their order.
"""

import contextlib

import keras
import tensorflow as tf

from moco_keras.distribution import accelerators
from moco_keras.models import model_state
from moco_keras.shuffle_bn import SplitBatchNormalization


def encode(encoder, images):
    """Encodes a batch in training, on a CPU each group of batch norm apart.

    It returns what `encoder(images, training=True)` does. On a GPU, which whole
    layers suit better, and for an encoder whose batch norms have no common
    groups, it is just that call.

    Args:
        encoder: functional `keras.Model`.
        images: (N, S, S, 3), as the encoder takes them.

    Returns:
        What the encoder returns, (N, C).
    """
    norms, splits = _common_splits(encoder)
    whole = splits == 1 or (images.shape[0] or 1) % splits
    if whole or accelerators.on_gpu():
        return encoder(images, training=True)
    weights = encoder.trainable_variables
    copies = [
        _with_ordered_gradients(tf.convert_to_tensor(w.value), splits)
        for w in weights
    ]
    outputs = []
    with contextlib.ExitStack() as stack:
        for norm in norms:
            stack.enter_context(norm.single_group_calls())
        groups = tf.split(images, splits, axis=0)
        for x, values in zip(groups, zip(*copies, strict=True), strict=True):
            scope = keras.StatelessScope(zip(weights, values, strict=True))
            with scope:
                outputs.append(encoder(x, training=True))
            for state in encoder.non_trainable_variables:  # a dropout's seed
                value = scope.get_current_value(state)
                if value is not None:
                    state.assign(value)
    return tf.concat(outputs, axis=0)


def _with_ordered_gradients(value, count):
    """The same tensor `count` times, whose gradients are summed in order."""

    @tf.custom_gradient
    def copy(value):
        return [tf.identity(value) for _ in range(count)], _sum_in_order

    return copy(value)


@tf.function(jit_compile=True)
def _sum_in_order(*gradients):
    # TensorFlow itself makes any sum an AddN, which begins with whatever
    # input's memory it may reuse: its roundings differ from run to run. XLA
    # keeps the order, and is as fast.
    return sum(gradients[1:], start=gradients[0])


def _common_splits(encoder):
    """The encoder's split batch norms and their splits; 1 where they differ."""
    norms = [
        x for x in encoder.layers if isinstance(x, SplitBatchNormalization)
    ]
    splits = {norm.splits for norm in norms}
    # Batch norms of another kind, or within other layers, need whole batches.
    kinds = (SplitBatchNormalization, keras.layers.BatchNormalization)
    all_norms = [x for x in model_state.layers(encoder) if isinstance(x, kinds)]
    nested = any(isinstance(x, keras.Model) for x in encoder.layers)
    if len(splits) != 1 or len(all_norms) != len(norms) or nested:
        return norms, 1
    return norms, *splits
