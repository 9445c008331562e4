"""What every pre-training program does: train, watch, evaluate, export."""

import contextlib
import dataclasses
import functools
import gc
import sys
import time

import keras

import moco_keras
from moco_keras import data, distribution
from moco_keras.evaluation import alarms, features
from moco_keras.recipes import (
    _board,
    _cli,
    _data,
    _defaults,
    _evaluation,
    _health,
    _history,
    _minutes,
    _model,
    _progress,
    _record,
    _results,
    _run_dir,
    _run_files,
    _settings,
    _start,
    _threads,
    _verdict,
)
from moco_keras.system import paths, signals, startup
from moco_keras.training import checkpoint_files


def run(recipe, read, defaults=None):
    """Runs a program that trains.

    Args:
        recipe: its name, the folder of its runs.
        read: function from the settings to `_data.Images`.
        defaults: `Settings`, where they differ from the notebook's.
    """

    def work(settings):
        _threads.share_cores()
        pretrain(settings, recipe, read)

    _cli.run(defaults or _settings.Settings(), work)


def pretrain(settings, recipe, read):
    """Trains an encoder, and leaves it with its record in a folder.

    Args:
        settings: `Settings`.
        recipe: name of the program, for the folder.
        read: see `run`.

    Returns:
        The folder, a `Path`; with many workers, that of the chief, and None to
        the others, which write nothing.
    """
    began = startup.began()
    if settings.minutes:
        if settings.steps_per_epoch is not None:
            raise ValueError(
                "--minutes chooses the steps of an epoch. Received: "
                f"--minutes={settings.minutes:g} and --steps_per_epoch="
                f"{settings.steps_per_epoch}. Leave one of them out."
            )
        settings = dataclasses.replace(settings, epochs=None)
    # First, because TensorFlow must know other hosts before it does anything.
    strategy = distribution.strategy(settings.strategy)
    if settings.batch_size is not None:
        _model.bn_splits_per_replica(settings, strategy.num_replicas_in_sync)
    own = contextlib.nullcontext((None, False))
    if distribution.is_chief(strategy):
        own = _run_dir.own(settings, recipe)
    with (
        distribution.readable_worker_errors(strategy),
        own as (folder, completed),
    ):
        if completed and settings.epochs in (
            None,
            _record.read(folder)["settings"]["epochs"],
        ):
            checkpoint_files.CheckpointFiles(folder / "checkpoints").keep(1)
            print(f"The results of this run are in their places in {folder}")
            return folder
        given = settings
        of_device = _defaults.for_device(given, strategy)
        images = _read(of_device, read, strategy)
        of_device = _defaults.for_pixels(of_device, images, strategy)
        about_images = (
            images.train.num_examples,
            images.bank.images.shape[1:3],
            strategy,
        )
        settings, model = build(of_device, *about_images)
        _evaluation.check_pixels(images, model.pixels)
        start, baselines = None, {}
        begins = folder is not None and not _record.has_checkpoint(folder)
        if begins and settings.init_from:
            start = _start.read(settings.init_from, model)
        if settings.minutes and of_device.epochs is None:
            if folder is not None:
                print("Measuring evaluation and training steps ...", flush=True)
            settings, baselines = _minutes.fit_epochs(
                settings, fitter, model, images, strategy, began
            )
            del model
            gc.collect()  # before the other takes its memory
            model = _model.build_replicated(settings, *about_images)
        if folder is not None:
            _progress.print_overview(given, settings, model, images, strategy)
            record = _record.make(settings, recipe, images, strategy)
            _run_dir.open_folder(folder, record)
            _run_files.write_skipped(
                folder / "skipped.csv", images.train.skipped
            )
            _run_files.keep_damaged(
                folder / "damaged.csv",
                getattr(images.train, "damaged", None),
            )
        with _printing_how_to_resume(folder):
            _train(settings, images, model, start, baselines, folder)
            # Should the chief fail, all start again.
            distribution.barrier(strategy)
        return folder


def _read(settings, read, strategy):
    """The images, which the chief has prepared for the other workers."""
    chief = distribution.is_chief(strategy)
    if chief:
        device = distribution.describe(strategy)
        print(f"Training on: {device}; {settings.precision}")
        print("Reading the images ...", flush=True)
    keras.config.set_dtype_policy(settings.precision)
    with distribution.chief_first(strategy):  # it may prepare the data
        images = read(settings)
    if chief:
        _data.print_notes(images)
    _evaluation.check_evaluation(images)
    return images


def build(of_device, num_images, image_size, strategy):
    """Completes the settings; returns them and their model.

    Args:
        of_device: `Settings` that fit the device.
        num_images: to train on.
        image_size: side of the images, or their height and width.
        strategy: that trains.

    Raises:
        ValueError: if there is not enough memory.
    """
    settings = _defaults.for_images(of_device, num_images, strategy)
    about_images = num_images, image_size, strategy
    model = _model.build_replicated(settings, *about_images)
    fitting = _defaults.for_memory(
        settings, of_device, model, num_images, strategy
    )
    if fitting != settings:
        model = _model.build_replicated(fitting, *about_images)
    return fitting, model


def fitter(model, train, batch_size):
    """The model's `fit`, which needs only the other arguments.

    Args:
        model: `MoCo`.
        train: `data.ImageStream` or `data.LabeledImages` to train on.
        batch_size: images in a step.
    """
    if isinstance(train, data.ImageStream):
        views = data.two_views(train, model.augmenter, batch_size)
        return functools.partial(model.fit, views)
    return functools.partial(model.fit, train.images, batch_size=batch_size)


@contextlib.contextmanager
def _printing_how_to_resume(folder):
    how = (
        "To resume, give the same command again, with "
        f"{_progress.how_to_resume(folder)}"
    )
    try:
        with signals.answered(last_words=folder and (lambda: how)):
            yield
    except (KeyboardInterrupt, SystemExit):
        if folder is not None:
            print(how, file=sys.stderr)
        raise
    except OSError as error:
        if folder is not None:
            raise OSError(f"{error}\n{how}") from error
        raise
    except alarms.AlarmError as error:
        raise ValueError(f"{error}\n{how} and --on_alarm=warn") from error


def _train(settings, images, model, start, baselines, folder):
    """Trains, and writes the results if there is a folder."""
    train, bank, test, _ = images
    callbacks, metrics = [moco_keras.callbacks.StopOnNaN()], dict(baselines)
    monitor = _evaluation.monitor(settings, model, images)
    labelled = monitor is not None
    if labelled:
        if not baselines:
            if folder is not None:
                print("Evaluating the untrained encoder ...", flush=True)
            metrics["knn_untrained"] = monitor.evaluate()["knn"]
        callbacks.append(monitor)
    if health := _health.monitor(settings, train):
        callbacks.append(health)
    if settings.init_from:
        _start.give(model, start, model.distribute_strategy)
    checkpoints, stack = None, contextlib.ExitStack()
    if folder is not None:
        if labelled and not baselines:
            metrics["knn_raw_pixels"] = _evaluation.raw_pixel_accuracy(images)
        _evaluation.print_baselines(images, metrics)
        _print_beginning(settings, start, folder)
        log = _history.History(folder / "history.csv")
        plain = stack.enter_context(paths.plain(folder))
        board = keras.callbacks.TensorBoard(plain / "logs", write_graph=False)
        callbacks += [log, board, _progress.Pace(folder)]
        if health:
            health.resume(log.epochs)
            callbacks.append(_board.Similarities(plain / "logs", health))
        checkpoints = folder / "checkpoints"
    checkpoint = moco_keras.Checkpoint(checkpoints, settings.checkpoint_every)
    began = time.perf_counter()
    with stack:
        history = fitter(model, train, settings.batch_size)(
            epochs=settings.epochs,
            steps_per_epoch=settings.steps_per_epoch,
            callbacks=[*callbacks, checkpoint],
            verbose="auto" if folder is not None else 0,
        )
    seconds = time.perf_counter() - began
    if history.epoch and labelled:
        found = monitor.features
    else:
        found = [features.extract(model, x.images) for x in (bank, test)]
    if folder is not None:
        # Of this process; tracing and the kNN evaluations are part of it.
        speed = log.steps * settings.batch_size / seconds
        timing = {"seconds": seconds, "images_per_second": speed}
        for name in ("knn", "knn_projection") if labelled else ():
            trained = name.replace("knn", "knn_trained")
            metrics[trained] = log.epochs[-1][name]
        if _evaluation.is_probed(settings, monitor):
            metrics["linear_probe"] = _evaluation.linear_probe(images, found)
        metrics["history"] = log.epochs
        if health:
            metrics["health"] = _health.summary(health.setup, log.epochs)
            known = test if labelled else None
            metrics["chance"] = _health.chance(health.setup, known)
        metrics["verdict"] = _verdict.of_run(
            metrics, len(test.images), settings.minutes
        )
        _results.write(folder, model, images, found, metrics, timing)
        _results.print_summary(metrics, bank, speed, folder)
        damaged = _run_files.names_of_damaged(folder / "damaged.csv")
        if damaged:  # not in the metrics: some were read for the next epoch
            print(f"Damaged images, see damaged.csv: {len(damaged):,}")


def _print_beginning(settings, start, folder):
    """Prints what a run begins with, unless it is new weights."""
    if start is not None:
        print(f"Begins with the weights and the queue of {settings.init_from}")
    after = _record.read(folder).get("continued_after_epochs")
    if after:
        print(
            f"This run was finished after {after[-1]} epochs, and continues to "
            f"{settings.epochs}. Its learning rate is now that of a run of "
            f"{settings.epochs} epochs: higher again at first."
        )
