"""Callbacks that watch a training."""

import math

import keras

from moco_keras import encoders, features, knn


class KNNMonitor(keras.callbacks.Callback):
    """Classifies test images by their nearest bank images, as training goes.

    Puts `knn`, by the backbone's features, and `knn_projection`, by the head's
    output, into the logs of the epochs it evaluates: the first, each `every`-th
    and the last. Callbacks that stand behind it in the list see them.

    Args:
        bank: (images, labels), uint8 (B, S, S, 3) and int (B,), the training
            images as a rule, without augmentation.
        test: (images, labels) to classify.
        every: epochs between evaluations.
        k: number of neighbours that vote; at most B.
        temperature: of the votes, see `knn.predict`.

    Attributes:
        features: those of the last evaluation, bank's and test's: float32
            (B, D) and (T, D) from the backbone, rows of length 1.

    Raises:
        ValueError: if the bank is smaller than `k`.
    """

    def __init__(self, bank, test, every=1, k=200, temperature=0.1):
        super().__init__()
        if k > len(bank[0]):
            raise ValueError(
                f"`k` must be at most the bank's {len(bank[0])} images. "
                f"Received: k={k}."
            )
        self.bank = bank[:2]
        self.test = test[:2]
        self.every = every
        self.k = k
        self.temperature = temperature

    def set_model(self, model):
        super().set_model(model)
        encoder = model.query_encoder
        # Both outputs in one pass, by all replicas.
        with model.distribute_strategy.scope():
            backbone = encoders.backbone(encoder)
            self._encoder = keras.Model(
                encoder.input, [backbone.output, encoder.output]
            )

    def extract(self):
        """Sets `features`; returns them with the projections of both sets."""
        self.model.average_statistics()  # after an epoch that was interrupted
        bank, test = (
            [
                features.unit_rows(output)
                for output in features.outputs(self._encoder, images)
            ]
            for images, _ in (self.bank, self.test)
        )
        self.features = bank[0], test[0]
        return bank, test

    def evaluate(self):
        """Returns {"knn": share right, "knn_projection": share right}."""
        bank, test = self.extract()
        names = ("knn", "knn_projection")
        return {
            name: knn.accuracy(
                of_bank,
                self.bank[1],
                of_test,
                self.test[1],
                self.k,
                self.temperature,
            )
            for name, of_bank, of_test in zip(names, bank, test, strict=True)
        }

    def on_epoch_end(self, epoch, logs=None):
        number = epoch + 1
        last = number == self.params["epochs"]
        if number == 1 or number % self.every == 0 or last:
            logs.update(self.evaluate())


class StopOnNaN(keras.callbacks.Callback):
    """Ends the training with an error at the first loss that is not a number.

    Raises:
        FloatingPointError: naming the epoch and the step. Keras's own
            `TerminateOnNaN` ends without an error, and what comes after `fit`
            would export a broken encoder.
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
