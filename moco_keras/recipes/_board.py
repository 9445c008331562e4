"""What TensorBoard shows of a run beside its numbers: similarities, pictures.

Keras's own callback writes the numbers.
"""

import base64
import csv

import keras
import numpy as np
import tensorflow as tf

from moco_keras.system.paths import printable

_PICTURES = "views", "neighbours", "health"


class Similarities(keras.callbacks.Callback):
    """Writes histograms of what a `HealthMonitor` measured.

    Args:
        folder: of TensorBoard's logs.
        monitor: the `HealthMonitor`, which comes before in the list.
    """

    def __init__(self, folder, monitor):
        super().__init__()
        self._folder, self._monitor = folder, monitor

    def on_train_begin(self, logs=None):
        place = self._folder / "health"
        self._writer = tf.summary.create_file_writer(str(place))

    def on_epoch_end(self, epoch, logs=None):
        if "health_negative_50" not in logs:
            return
        names = "similarity_positives", "similarity_negatives"
        with self._writer.as_default(step=epoch):
            for name, values in zip(
                names, self._monitor.similarities, strict=True
            ):
                tf.summary.histogram(name, values)
        self._writer.flush()

    def on_train_end(self, logs=None):
        self._writer.close()


def write_pictures(folder, logs, step):
    """Writes the pictures of a finished run.

    Args:
        folder: of the run, a `Path`.
        logs: the folder of TensorBoard's logs.
        step: number of the last epoch, from 0.
    """
    writer = tf.summary.create_file_writer(str(logs / "pictures"))
    with writer.as_default(step=step):
        for name in _PICTURES:
            file = folder / f"{name}.png"
            if file.exists():
                picture = tf.io.decode_png(file.read_bytes(), channels=3)
                tf.summary.image(name, picture[None])
    writer.close()


def write_embeddings(logs, features, found):
    """Writes features for TensorBoard's projector.

    Args:
        logs: the folder of TensorBoard's logs.
        features: float (N, D), of the images on the map, and maybe of more.
        found: what `plotting.embedding_map` returned.
    """
    from tensorboard.plugins import projector

    data = found["data"]
    place = logs / "pictures"  # a run to TensorBoard, as it has events
    place.mkdir(parents=True, exist_ok=True)
    rows = features[: len(data["names"])]
    np.savetxt(place / "features.tsv", rows, fmt="%.5g", delimiter="\t")
    with (place / "names.tsv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(
            [printable(name)] for name in data["names"]
        )
    _, _, encoded = found["sprite"].partition("base64,")
    (place / "sprite.jpg").write_bytes(base64.b64decode(encoded))
    config = projector.ProjectorConfig()
    embedding = config.embeddings.add(
        tensor_name="features",
        tensor_path="features.tsv",
        metadata_path="names.tsv",
    )
    embedding.sprite.image_path = "sprite.jpg"
    embedding.sprite.single_image_dim.extend([data["side"]] * 2)
    projector.visualize_embeddings(str(place), config)
