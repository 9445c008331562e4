"""The callback that classifies images by their nearest neighbors."""

import keras
import numpy as np

from moco_keras import arguments
from moco_keras.data import checks
from moco_keras.evaluation import features, knn
from moco_keras.models import derived


class KNNMonitor(keras.callbacks.Callback):
    """Classifies test images by their nearest bank images, during training.

    Puts `knn`, by the backbone's features, and `knn_projection`, by the head's
    output, into the logs of the epochs it evaluates: the first, each `every`-th
    and the last. Callbacks after it in the list see them.

    Args:
        bank: (images, labels), (B, H, W, C) as the encoder takes them, and int
            (B,) or (B, 1), usually the training images, without augmentation.
        test: (images, labels) to classify. A label that the bank lacks is never
            found.
        every: epochs between evaluations.
        k: number of neighbors that vote, at most B; by default
            `knn.default_k`, 200 or the images of the bank's smallest class.
        temperature: of the votes, see `knn.predict`.

    Attributes:
        features: those of the last evaluation, bank's and test's: float32
            (B, D) and (T, D) from the backbone, rows of length 1.
        k: as chosen.

    Raises:
        ValueError: if images or labels are not as above, the bank has one class
            or is smaller than `k`, or, when training starts, the images are not
            of the encoder's size.
    """

    def __init__(self, bank, test, every=1, k=None, temperature=0.1):
        super().__init__()
        self.bank = _labeled(bank=bank)
        if len(np.unique(self.bank[1])) < 2:
            raise ValueError(
                "`bank_labels` must be of two classes or more, because with "
                "one any encoder is right. Received: all labels are "
                f"{self.bank[1][0]}. Leave the callback out, or label more."
            )
        self.test = _labeled(test=test)
        self.every = arguments.whole(every=every)
        self.k = knn.check_k(k, self.bank[1])
        self.temperature = knn.check_temperature(temperature)

    def set_model(self, model):
        super().set_model(model)
        encoder = model.query_encoder
        for name, (images, _) in {"bank": self.bank, "test": self.test}.items():
            checks.check_for(images, encoder, f"`{name}`")
        # Both outputs in one pass, by all replicas.
        with model.distribute_strategy.scope():
            self._encoder = derived.features_and_projections(encoder)

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
        """Returns {"knn": accuracy, "knn_projection": accuracy}."""
        bank, test = self.extract()
        names = ("knn", "knn_projection")
        return {
            name: knn.accuracy(
                bank_features,
                self.bank[1],
                test_features,
                self.test[1],
                self.k,
                self.temperature,
            )
            for name, bank_features, test_features in zip(
                names, bank, test, strict=True
            )
        }

    def on_epoch_end(self, epoch, logs=None):
        number = epoch + 1
        last = number == self.params["epochs"]
        if number == 1 or number % self.every == 0 or last:
            logs.update(self.evaluate())


def _labeled(**pair):
    """Images with their labels, (images, int64 (N,)), checked."""
    ((name, given),) = pair.items()
    if not isinstance(given, (tuple, list)) or len(given) < 2:
        raise ValueError(
            f"`{name}` must be (images, labels), two arrays. Received: "
            f"{type(given).__name__}."
        )
    images, labels = given[:2]
    checks.check_images(images, pixels=None)  # until the encoder is known
    labels = knn.check_labels(len(images), **{f"{name}_labels": labels})
    return images, labels
