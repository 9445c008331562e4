"""What every pre-training program does: train, watch, evaluate, export."""

import contextlib
import shlex
import shutil
import signal
import sys
import time

import keras
import tensorflow as tf
from absl import app, logging

import moco_keras
from moco_keras import data, distribution, features, knn, plotting
from moco_keras.recipes import _record, _settings, _threads


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
        except (
            ValueError,
            OSError,
            FloatingPointError,
            tf.errors.OpError,
        ) as error:
            logging.debug("Where it happened:", exc_info=True)  # --verbosity=1
            print(f"\nError: {error}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)

    app.run(main)


def pretrain(settings, recipe, source):
    """Trains an encoder, and leaves it with its record in a folder.

    Args:
        settings: `Settings`.
        recipe: name of the program, for the folder.
        source: the data set, see `data.load`.

    Returns:
        The folder, a `Path`; of many workers, that of the chief, and None to
        the others, which write nothing.
    """
    # First, for TensorFlow must know other hosts before it does anything.
    strategy = distribution.strategy(settings.strategy)
    with distribution.loss_of_workers(strategy):
        return _pretrain(settings, recipe, source, strategy)


def _pretrain(settings, recipe, source, strategy):
    chief = distribution.is_chief(strategy)
    keras.config.set_dtype_policy(settings.precision)
    with distribution.chief_first(strategy):  # it may prepare the data
        bank, test = (
            data.load(
                source, split, data_dir=settings.data_dir, examples=examples
            )
            for split, examples in (
                ("train", settings.train_examples),
                ("test", settings.test_examples),
            )
        )
    folder = None
    if chief:
        replicas = strategy.num_replicas_in_sync
        folder = _record.open_folder(
            _record.make(settings, recipe, bank, test, replicas)
        )
    with _saying_how_to_go_on(folder):
        _train_and_leave(settings, bank, test, strategy, folder)
        # Should the chief fail, all start again.
        distribution.meet(strategy)
    return folder


@contextlib.contextmanager
def _saying_how_to_go_on(folder):
    how = (
        "To go on, give the same command again, with "
        f"--run_dir={shlex.quote(str(folder))}"
    )
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if folder is not None:
            print(how, file=sys.stderr)
        raise
    except OSError as error:
        if folder is not None:
            raise OSError(f"{error}\n{how}") from error
        raise


def _train_and_leave(settings, bank, test, strategy, folder):
    """Trains, and writes what there is to write where there is a folder."""
    # Not before: a data set that is prepared first takes random numbers.
    keras.utils.set_random_seed(settings.seed)
    with strategy.scope():
        model = build_model(
            settings, bank.images, strategy.num_replicas_in_sync
        )
    k = min(200, len(bank.images))
    monitor = moco_keras.callbacks.KNNMonitor(
        bank, test, every=settings.knn_every, k=k
    )
    monitor.set_model(model)
    untrained = monitor.evaluate()["knn"]

    watchers = [moco_keras.callbacks.StopOnNaN(), monitor]
    checkpoints = None
    if folder is not None:
        checkpoints = folder / "checkpoints"
        metrics = _before(bank, test, untrained, k)
        log = _record.History(folder / "history.csv")
        board = keras.callbacks.TensorBoard(folder / "logs", write_graph=False)
        watchers += [log, board]
    start = time.perf_counter()
    history = model.fit(
        bank.images,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        callbacks=[
            *watchers,
            moco_keras.Checkpoint(checkpoints, settings.checkpoint_every),
        ],
        verbose="auto" if folder is not None else 0,
    )
    seconds = time.perf_counter() - start
    if not history.epoch:  # only the export was missing
        monitor.evaluate()
    if folder is not None:
        metrics |= {
            "knn_trained": log.epochs[-1]["knn"],
            "knn_trained_projection": log.epochs[-1]["knn_projection"],
            "history": log.epochs,
        }
        # Of this process; tracing and the kNN evaluations are part of it.
        speed = log.steps * settings.batch_size / seconds
        timing = {"seconds": seconds, "images_per_second": speed}
        _record.write_json(folder / "timing.json", timing)
        _leave(folder, model, monitor, bank, test, metrics)
        _print_summary(metrics, k, speed, folder)


def _leave(folder, model, monitor, bank, test, metrics):
    """Writes what a run is for, its metrics last."""
    shutil.rmtree(folder / "encoder", ignore_errors=True)  # what began
    moco_keras.export_encoder(model, folder / "encoder")
    model.save(folder / "model.keras")
    _draw(folder, model, monitor, bank, test, metrics)
    _record.write_json(folder / "metrics.json", metrics)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _before(bank, test, untrained, k):
    """Prints, and returns, what there is to compare a training with."""
    raw_pixels = knn.accuracy(
        features.unit_rows(bank.images),
        bank.labels,
        features.unit_rows(test.images),
        test.labels,
        k=k,
    )
    print(
        f"{bank.source}: {len(bank.images)} training, {len(test.images)} test"
    )
    print(f"kNN (k={k}) of raw pixels: {raw_pixels:.3f}")
    print(f"kNN (k={k}) of the untrained encoder: {untrained:.3f}")
    return {"knn_raw_pixels": raw_pixels, "knn_untrained": untrained}


def build_model(settings, images, num_replicas=1):
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
        # So that one device and many form the same groups.
        bn_splits=max(1, settings.bn_splits // num_replicas),
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


def _print_summary(metrics, k, images_per_second, folder):
    print(f"\nkNN, k={k}, share of test images right")
    for name in ("raw_pixels", "untrained", "trained"):
        print(f"  {name.replace('_', ' '):<12}{metrics[f'knn_{name}']:.3f}")
    if images_per_second:
        print(f"{images_per_second:.0f} images a second")
    print(f"The encoder, its record and its pictures are in {folder}")
