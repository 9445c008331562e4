"""Small runs, each ill in its own way, or healthy.

    PYTHONPATH=. python tests/helpers/illnesses.py

prints the alarms that each raises, and how many were right: docs/health.md has
the table. CIFAR-10 must be prepared in MOCO_KERAS_DATA_DIR.
"""

import warnings

import keras
import numpy as np
import shallow
import tensorflow as tf

import moco_keras
from moco_keras import augmentations, data, textures
from moco_keras.callbacks import HealthMonitor

IMAGES, BATCH, EPOCHS = 2_000, 64, 3
LEARNING_RATE = 0.03


@keras.saving.register_keras_serializable(package="illnesses")
class BatchStatistics(keras.layers.Layer):
    """In training, adds what the mean picture of the batch is like."""

    def __init__(self, mean, **kwargs):
        super().__init__(**kwargs)
        self.mean = mean

    def get_config(self):
        return {**super().get_config(), "mean": self.mean}

    def build(self, shapes):
        matrix = np.random.default_rng(0).normal(size=(48, shapes[1][-1]))
        self.matrix = tf.constant(5 * matrix, "float32")

    def call(self, inputs, training=False):
        images, x = inputs
        if not training:
            return x
        small = tf.nn.avg_pool2d(tf.cast(images, "float32"), 8, 8, "VALID")
        small = tf.reshape(small, (-1, 48))
        of_batch = tf.reduce_mean(small, 0, keepdims=True)
        of_batch -= tf.constant(self.mean, "float32")
        return x + tf.linalg.normalize(of_batch)[0] @ self.matrix


def leaking(images):
    """Gives an encoder whose outputs tell the batch, in training."""
    blocks = images.reshape(len(images), 4, 8, 4, 8, 3)
    mean = blocks.mean(axis=(0, 2, 4)).reshape(-1).tolist()

    def edit(encoder):
        features = encoder.get_layer("features")
        x = BatchStatistics(mean)([encoder.input, features.output])
        head = encoder.layers[encoder.layers.index(features) + 1 :]
        for layer in head:
            x = layer(x)
        return keras.Model(encoder.input, x)

    return edit


def dead(encoder):
    """Gives the encoder a head whose ReLU never lets anything through."""
    hidden = encoder.get_layer("head_hidden")
    hidden.bias.assign(np.full(hidden.bias.shape, -1e3))
    return encoder


def blank(images):
    return {"images": np.full_like(images, 128)}


def duplicates(images):
    half = images[: len(images) // 2]
    return {"images": np.concatenate([half, half])}


def batch_statistics(images):
    return {
        "edit": leaking(images),
        "augmenter": augmentations.crop_and_flip(32, min_area=0.3),
        "bn_splits": 1,
        "shuffle": "none",
    }


# By name: settings of `run`, or a function from images to them; alarms that
# are right; the epoch by which one is told.
ILLNESSES = {
    "learning rate x 100": (
        {"learning_rate": 100 * LEARNING_RATE},
        {"collapse", "partial collapse", "divergence"},
        2,
    ),
    "no augmentation": (
        lambda images: {"augmenter": augmentations.evaluation(32)},
        {"equal views"},
        1,
    ),
    "m = 0, K = one batch": (
        {"momentum": 0.0, "queue_size": BATCH},
        {"key encoder"},
        0,
    ),
    "temperature 10": ({"temperature": 10.0}, {"temperature"}, 0),
    "an encoder that reads batch statistics": (batch_statistics, {"leak"}, 3),
    "K of 4,096 for 2,000 images": (
        {"queue_size": 4096},
        {"queue too long"},
        0,
    ),
    "half of the images duplicates": (duplicates, {"duplicates"}, 0),
    "all images blank": (blank, {"blank images"}, 0),
    "a dead projection": ({"edit": dead}, {"collapse"}, 2),
}
HEALTHY = [
    {"method": "v1", "width": 8, "seed": 0},
    {"method": "v1", "width": 16, "seed": 1},
    {"method": "v2", "width": 8, "seed": 2},
    {"method": "v2", "width": 16, "seed": 3},
    {"method": "v1", "width": 8, "seed": 4},
    {"method": "v2", "width": 16, "seed": 5},
]


def planted(name, images):
    """Arguments of `run` for an illness."""
    settings, *_ = ILLNESSES[name]
    if callable(settings):
        settings = settings(images)
    return {"images": images, **settings}


def run(
    images,
    *,
    epochs=EPOCHS,
    method="v2",
    width=8,
    seed=0,
    learning_rate=LEARNING_RATE,
    augmenter=None,
    bn_splits=2,
    edit=None,
    queue_size=512,
    momentum=0.99,
    temperature=0.2,
    shuffle="replicas",
):
    """Trains, for no epochs too; returns the `HealthMonitor`."""
    keras.utils.set_random_seed(seed)
    head = {"v1": "linear", "v2": "mlp"}[method]
    views = {"v1": augmentations.cifar, "v2": augmentations.moco_v2}[method]
    encoder = moco_keras.build_encoder(
        "resnet18",
        32,
        head=head,
        stem="imagenet",
        width=width,
        bn_splits=bn_splits,
    )
    model = moco_keras.MoCo(
        edit(encoder) if edit else encoder,
        augmenter or views(32),
        queue_size=queue_size,
        momentum=momentum,
        temperature=temperature,
        shuffle=shuffle,
    )
    model.compile(optimizer=moco_keras.optimizers.SGD(learning_rate, l2=5e-4))
    monitor = HealthMonitor(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if not epochs:  # what is known before training
            monitor.set_model(model)
            monitor.on_train_begin()
            return monitor
        model.fit(
            images,
            batch_size=BATCH,
            epochs=epochs,
            verbose=0,
            callbacks=[monitor],
        )
    return monitor


def read(name):
    """Two thousand images: "textures" or "cifar10"."""
    if name == "textures":
        return textures.draw(IMAGES, seed=0)[0]
    return data.load(name, examples=IMAGES).images


def main():
    named, quiet = [], []
    for source in ("textures", "cifar10"):
        images = read(source)
        for name, (_, right, _) in ILLNESSES.items():
            monitor = run(**planted(name, images))
            named.append(bool(right & {a.kind for a in monitor.alarms}))
            print(f"| {source} | {name} | {told(monitor)} |", flush=True)
        for settings in HEALTHY:
            monitor = run(images, **settings)
            quiet.append(not monitor.alarms)
            print(f"| {source} | {settings} | {told(monitor)} |", flush=True)
    print(f"{sum(named)} of {len(named)} illnesses are named.")
    print(f"{sum(quiet)} of {len(quiet)} healthy runs raise no alarm.")


def told(monitor):
    return ", ".join(f"{a.kind} ({a.epoch})" for a in monitor.alarms)


if __name__ == "__main__":
    with shallow.networks():
        main()
