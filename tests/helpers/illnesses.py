"""Small runs, each ill in its own way or healthy, for the health alarms.

    python tests/helpers/illnesses.py [--data_dir=DIR]

prints the alarms of each as a table. CIFAR-10 must be prepared in DIR.
"""

import sys
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
        x = encoder.get_layer("features").output
        x = BatchStatistics(mean)([encoder.input, x])
        for layer in encoder.layers[-3:]:  # of the head
            x = layer(x)
        return keras.Model(encoder.input, x)

    return edit


def dead(encoder):
    """Gives the encoder a head whose ReLU never lets anything through."""
    hidden = encoder.get_layer("head_hidden")
    hidden.bias.assign(np.full(hidden.bias.shape, -1e3))
    return encoder


def illnesses(images):
    """By name: settings of `run`, and the alarms that are right."""
    half = images[: len(images) // 2]
    crops = augmentations.crop_and_flip(32, min_area=0.3)
    return {
        "learning rate x 100": (
            {"learning_rate": 100 * LEARNING_RATE},
            {"collapse", "partial collapse", "divergence"},
        ),
        "no augmentation": (
            {"augmenter": augmentations.evaluation(32)},
            {"equal views"},
        ),
        "m = 0, tiny queue": (
            {"momentum": 0.0, "queue_size": BATCH},
            {"key encoder"},
        ),
        "temperature 10": ({"temperature": 10.0}, {"temperature"}),
        "batch statistics": (
            {
                "edit": leaking(images),
                "augmenter": crops,
                "bn_splits": 1,
                "shuffle": "none",
            },
            {"leak"},
        ),
        "K above the images": ({"queue_size": 4096}, {"queue too long"}),
        "half duplicates": (
            {"images": np.concatenate([half, half])},
            {"duplicates"},
        ),
        "blank": (
            {"images": np.full_like(images, 128)},
            {"blank images"},
        ),
        "dead projection": ({"edit": dead}, {"collapse"}),
    }


def healthy():
    """Settings of `run`, for twelve healthy runs with two sets of images."""
    return [
        {"method": method, "width": width, "seed": seed}
        for method, width, seed in (
            ("v1", 8, 0),
            ("v1", 16, 1),
            ("v2", 8, 2),
            ("v2", 16, 3),
            ("v1", 8, 4),
            ("v2", 16, 5),
        )
    ]


def run(
    images,
    *,
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
    """Trains three epochs; returns the `HealthMonitor` and what `fit` logged."""
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
        logs = model.fit(
            images,
            batch_size=BATCH,
            epochs=EPOCHS,
            verbose=0,
            callbacks=[monitor],
        ).history
    return monitor, logs


def read(name, data_dir=None):
    """Two thousand images: "textures" or "cifar10"."""
    if name == "textures":
        return textures.draw(IMAGES, seed=0)[0]
    return data.load(name, examples=IMAGES, data_dir=data_dir).images


def main(data_dir=None):
    for name in ("textures", "cifar10"):
        images = read(name, data_dir)
        for illness, (settings, right) in illnesses(images).items():
            settings = {"images": images, **settings}
            monitor, logs = run(settings.pop("images"), **settings)
            found = {f"{a.kind} ({a.epoch})" for a in monitor.alarms}
            named = right & {a.kind for a in monitor.alarms}
            print(name, illness, "named" if named else "MISSED", found)
        for settings in healthy():
            monitor, logs = run(images, **settings)
            found = {f"{a.kind} ({a.epoch})" for a in monitor.alarms}
            print(name, settings, found or "no alarm", flush=True)
            if "-v" in sys.argv:
                for k in logs:
                    print("    ", k, [round(x, 3) for x in logs[k]])


if __name__ == "__main__":
    with shallow.networks():
        main(*[x.partition("=")[2] for x in sys.argv[1:] if "=" in x])
