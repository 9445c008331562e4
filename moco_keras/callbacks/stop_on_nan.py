"""The callback that ends a training run whose loss is not finite."""

import math

import keras


class StopOnNaN(keras.callbacks.Callback):
    """Ends the training run with an error at the first loss that is not finite.

    Raises:
        FloatingPointError: naming the epoch and the step. Keras's own
            `TerminateOnNaN` ends without an error, and whatever comes after
            `fit` would export a broken encoder.
    """

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch + 1

    def on_train_batch_end(self, batch, logs=None):
        loss = logs["loss"]
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The loss became {loss} at step {batch + 1} of epoch "
                f"{self._epoch}. Nothing was exported, and earlier exports are "
                "as they were. Lower the learning rate, or raise the "
                "temperature."
            )
