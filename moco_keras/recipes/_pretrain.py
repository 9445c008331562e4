"""What every pre-training program does: train, watch, evaluate, export."""

import dataclasses
import datetime
import json
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path

import keras
import tensorflow as tf
from absl import app, logging

import moco_keras
from moco_keras import data, distribution, features, knn, plotting
from moco_keras.recipes import _settings, _threads

_PACKAGES = ("keras", "tensorflow", "tensorflow-datasets", "keras-cv", "numpy")


def run(recipe, source, defaults=None):
    """Runs a program: reads its flags, trains, and ends with an exit code.

    Args:
        recipe: its name, the folder of its runs.
        source: the data set, see `data.load`.
        defaults: `Settings`, where they differ from the notebook's.
    """
    logging.set_verbosity(logging.WARNING)  # --verbosity=0 for more
    _settings.define_flags(defaults or _settings.Settings())

    def main(argv):
        if len(argv) > 1:
            raise app.UsageError(f"Expected flags only. Received: {argv[1:]}.")
        _threads.share_cores()
        try:
            pretrain(_settings.from_flags(), recipe, source)
        except (ValueError, OSError, FloatingPointError) as error:
            logging.debug("Where it happened:", exc_info=True)  # --verbosity=1
            print(f"\nError: {error}", file=sys.stderr)
            sys.exit(1)

    app.run(main)


def pretrain(settings, recipe, source):
    """Trains an encoder, and leaves it with its record in a new folder.

    Args:
        settings: `Settings`.
        recipe: name of the program, for the folder.
        source: the data set, see `data.load`.

    Returns:
        The folder, a `Path`.
    """
    keras.config.set_dtype_policy(settings.precision)
    bank = data.load(
        source,
        "train",
        data_dir=settings.data_dir,
        examples=settings.train_examples,
    )
    test = data.load(
        source,
        "test",
        data_dir=settings.data_dir,
        examples=settings.test_examples,
    )
    print(
        f"{bank.source}: {len(bank.images)} training, {len(test.images)} test"
    )
    # Not before: a data set that is prepared first takes random numbers.
    keras.utils.set_random_seed(settings.seed)
    with distribution.strategy(settings.strategy).scope():
        model = build_model(settings, bank.images)
    k = min(200, len(bank.images))
    monitor = moco_keras.callbacks.KNNMonitor(
        bank, test, every=settings.knn_every, k=k
    )
    monitor.set_model(model)
    metrics = {
        "knn_raw_pixels": knn.accuracy(
            features.unit_rows(bank.images),
            bank.labels,
            features.unit_rows(test.images),
            test.labels,
            k=k,
        ),
        "knn_untrained": monitor.evaluate()["knn"],
    }
    print(f"kNN (k={k}) of raw pixels: {metrics['knn_raw_pixels']:.3f}")
    print(
        f"kNN (k={k}) of the untrained encoder: {metrics['knn_untrained']:.3f}"
    )

    folder = _new_folder(Path(settings.export_dir) / recipe)
    _write_json(folder / "settings.json", _record(settings, bank, test))
    epochs = []  # filled by the last callback, once the others have spoken
    start = time.perf_counter()
    model.fit(
        bank.images,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        callbacks=[
            moco_keras.callbacks.StopOnNaN(),
            monitor,
            keras.callbacks.CSVLogger(folder / "history.csv"),
            keras.callbacks.TensorBoard(folder / "logs", write_graph=False),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: epochs.append(
                    {"epoch": epoch + 1, **logs}
                )
            ),
        ],
    )
    seconds = time.perf_counter() - start
    steps = settings.epochs * (len(bank.images) // settings.batch_size)
    metrics |= {
        "knn_trained": epochs[-1]["knn"],
        "knn_trained_projection": epochs[-1]["knn_projection"],
        # Tracing and the kNN evaluations are part of the time.
        "images_per_second": steps * settings.batch_size / seconds,
        "history": epochs,
    }
    moco_keras.export_encoder(model, folder / "encoder")
    model.save(folder / "model.keras")
    _write_json(folder / "metrics.json", metrics)
    _draw(folder, model, monitor, bank, test, metrics)
    _print_summary(metrics, k, folder)
    return folder


def build_model(settings, images):
    """The compiled `MoCo` of the settings, for uint8 images (N, S, S, 3)."""
    if settings.batch_size > len(images):
        raise ValueError(
            "--batch_size must be at most the number of training images. "
            f"Received: --batch_size={settings.batch_size}, {len(images)} "
            "images."
        )
    image_size = images.shape[1]
    encoder = moco_keras.build_encoder(
        settings.encoder,
        image_size,
        settings.projection_dim,
        head=settings.head,
        stem=settings.stem,
        width=settings.width,
        bn_splits=settings.bn_splits,
    )
    augment = getattr(moco_keras.augmentations, settings.augmentation)
    model = moco_keras.MoCo(
        encoder,
        augment(image_size, min_area=settings.min_area),
        queue_size=settings.queue_size,
        momentum=settings.momentum,
        temperature=settings.temperature,
        symmetric=settings.symmetric,
    )
    steps_per_epoch = len(images) // settings.batch_size
    learning_rate = moco_keras.schedules.EpochCosine(
        settings.learning_rate, steps_per_epoch, settings.epochs
    )
    model.compile(
        optimizer=moco_keras.optimizers.SGD(learning_rate, l2=settings.l2)
    )
    return model


def _new_folder(parent):
    """A folder named after the time, which nothing has written to before."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{i}" for i in range(2, 100))):
        folder = parent / (stamp + suffix)
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise FileExistsError(f"Too many runs are called {parent / stamp}.")


def _record(settings, bank, test):
    gpus = [
        tf.config.experimental.get_device_details(gpu)["device_name"]
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    versions = {name: metadata.version(name) for name in _PACKAGES}
    return {
        "settings": dataclasses.asdict(settings),
        "versions": {
            "moco_keras": moco_keras.__version__,
            "python": platform.python_version(),
            **versions,
        },
        "device": gpus or f"CPU {platform.machine()}, {os.cpu_count()} cores",
        "data": {
            "source": bank.source,
            "train_images": len(bank.images),
            "test_images": len(test.images),
            "image_shape": bank.images.shape[1:],
            "classes": bank.class_names,
        },
    }


def _write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def _draw(folder, model, monitor, bank, test, metrics):
    plotting.curves(
        metrics["history"],
        metrics["knn_raw_pixels"],
        metrics["knn_untrained"],
        folder / "curves.png",
    )
    shown = test.images[:8]
    plotting.views(
        shown,
        model.augmenter(shown),
        model.augmenter(shown),
        folder / "views.png",
    )
    bank_features, test_features = monitor.features
    _, rows = knn.nearest(bank_features, test_features[:8], k=5)
    plotting.neighbours(
        shown,
        test.labels[:8],
        bank.images[rows],
        bank.labels[rows],
        test.class_names,
        folder / "neighbours.png",
    )


def _print_summary(metrics, k, folder):
    print(f"\nkNN, k={k}, share of test images right")
    for name in ("raw_pixels", "untrained", "trained"):
        print(f"  {name.replace('_', ' '):<12}{metrics[f'knn_{name}']:.3f}")
    print(f"{metrics['images_per_second']:.0f} images a second")
    print(f"The encoder, its record and its pictures are in {folder}")
