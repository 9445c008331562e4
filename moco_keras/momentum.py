"""The callback that moves the key encoder after the query encoder."""

import keras
import tensorflow as tf


def parameter_pairs(key_encoder, query_encoder):
    """Pairs (key variable, query variable) that the momentum update averages.

    Parameters only, gamma and beta of batch norm among them. Moving means and
    variances are left out: the key encoder's follow its own batches.
    """
    pairs = zip(key_encoder.weights, query_encoder.weights, strict=True)
    return [(k, q) for k, q in pairs if q.trainable]


class MomentumUpdate(keras.callbacks.Callback):
    """Moves the key encoder a little towards the query encoder, every batch.

    theta_k <- m theta_k + (1 - m) theta_q, after the optimiser's step, in one
    compiled call. m is the model's `momentum`: a number, or a schedule of the
    number of steps taken. `MoCo.fit` adds this callback where none is given.

    Raises:
        ValueError: when training starts, if the model runs several steps per
            execution: Keras calls back once per execution, and the key encoder
            would fall behind.

    Reference:
        Equation 2 of [He et al., 2020](https://arxiv.org/abs/1911.05722).
    """

    _compiled_for = None

    def on_train_begin(self, logs=None):
        if self.model.steps_per_execution > 1:
            raise ValueError(
                "`steps_per_execution` must be 1: the key encoder moves after "
                "every step, and Keras calls callbacks once per execution. "
                f"Received: steps_per_execution="
                f"{self.model.steps_per_execution}. Compile the model without "
                "it."
            )
        # Compiled anew only where it would be another function.
        if self._compiled_for != (self.model, self.model.momentum):
            self._compiled_for = self.model, self.model.momentum
            strategy = self.model.distribute_strategy
            # XLA reads and writes every variable once: half the time.
            move = tf.function(self._move, jit_compile=True)

            def move_own():
                # Given a compiled function itself, `strategy.run` makes one
                # call for all replicas.
                move()

            self._update = tf.function(lambda: strategy.run(move_own))

    def _move(self):
        model = self.model
        m = model.momentum
        if callable(m):
            m = tf.cast(m(model.optimizer.iterations), "float32")
        for k, q in parameter_pairs(model.key_encoder, model.query_encoder):
            k.assign(m * k + (1.0 - m) * q)

    def on_train_batch_end(self, batch, logs=None):
        self._update()
