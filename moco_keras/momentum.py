"""The callback that moves the key encoder after the query encoder."""

import keras
import tensorflow as tf

from moco_keras import keras_private
from moco_keras.models import model_state


def parameters(encoder):
    """An encoder's parameters, those of frozen layers too.

    Gamma and beta of batch norm are among them. Moving means and variances are
    not: the key encoder's follow its own batches.
    """
    return [
        variable
        for layer in model_state.layers(encoder)
        for variable in keras_private.parameters(layer)
    ]


def freeze_alike(key_encoder, query_encoder):
    """Freezes the key encoder's layers where the query encoder's are frozen.

    A frozen batch norm normalizes by its moving statistics, and keys must be
    normalized as queries are.
    """
    layers = map(model_state.layers, (key_encoder, query_encoder))
    for key_layer, query_layer in zip(*layers, strict=True):
        key_layer.trainable = query_layer.trainable


class MomentumUpdate(keras.callbacks.Callback):
    """Moves the key encoder a little towards the query encoder, every step.

    theta_k <- m theta_k + (1 - m) theta_q, after each update of the optimizer,
    in one compiled call: with gradient accumulation once in so many batches,
    and not after a batch whose gradients loss scaling skips. m is the model's
    `momentum`: a number, or a schedule of the optimizer's `iterations`.
    `fit` adds this callback if none is given, and `train_on_batch` calls it. A
    loop that calls `train_step` itself must call it, too.

    Raises:
        ValueError: when training starts, if the model runs several steps per
            execution: Keras calls back once per execution, and the key encoder
            would fall behind.

    Reference:
        Equation 2 of [He et al., 2020](https://arxiv.org/abs/1911.05722).
    """

    _traced_for = None

    def on_train_begin(self, logs=None):
        if self.model.steps_per_execution != 1:
            raise ValueError(
                "`steps_per_execution` must be 1: the key encoder moves after "
                "every step, and Keras calls callbacks once per execution. "
                f"Received: steps_per_execution="
                f"{self.model.steps_per_execution}. Compile the model without "
                "it."
            )

    def on_train_batch_end(self, batch, logs=None):
        model = self.model
        schedule = model.momentum if callable(model.momentum) else None
        # Traced anew only where it would be another function.
        traced_for = model, model.optimizer, schedule
        if self._traced_for != traced_for:
            self._traced_for = traced_for
            self._update = _traced(*traced_for)
        self._update(0.0 if schedule else model.momentum)


def _traced(model, optimizer, schedule):
    """A compiled function of m, which a schedule overrides."""

    def move(m):
        if schedule is not None:
            m = tf.cast(schedule(optimizer.iterations), "float32")
        m = tf.where(model.updated, m, 1.0)
        keys, queries = map(
            parameters, (model.key_encoder, model.query_encoder)
        )
        for k, q in zip(keys, queries, strict=True):
            k.assign(m * k + (1.0 - m) * q)

    # XLA reads and writes every variable once: half the time.
    compiled = tf.function(move, jit_compile=True)

    def move_own(m):
        # Given a compiled function itself, `strategy.run` makes one call for
        # all replicas.
        compiled(m)

    number = tf.TensorSpec((), "float32")
    return tf.function(
        lambda m: model.distribute_strategy.run(move_own, (m,)),
        input_signature=[number],
    )
