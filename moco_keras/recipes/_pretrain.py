"""What every pre-training program does: train, watch, evaluate, export."""

import contextlib
import functools
import math
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np

import moco_keras
from moco_keras import data, distribution, plotting
from moco_keras.data import image_files
from moco_keras.evaluation import features, knn
from moco_keras.recipes import (
    _cli,
    _plan,
    _run_dir,
    _settings,
    _start,
    _threads,
)
from moco_keras.system import paths, signals
from moco_keras.training import checkpoint_files


def run(recipe, read, defaults=None):
    """Runs a program that trains.

    Args:
        recipe: its name, the folder of its runs.
        read: function from the settings to `Images`.
        defaults: `Settings`, where they differ from the notebook's.
    """

    def work(settings):
        _threads.share_cores()
        pretrain(settings, recipe, read)

    _cli.run(defaults or _settings.Settings(), work)


class Images(NamedTuple):
    """What a program trains on and evaluates with.

    Attributes:
        train: `data.ImageSet` or `data.ImageStream`, to train on.
        bank, test: `data.ImageSet`s; where all have labels, kNN finds those of
            the test images among the bank.
        notes: lines that say what was taken for what.
    """

    train: data.ImageSet | data.ImageStream
    bank: data.ImageSet
    test: data.ImageSet
    notes: Sequence[str] = ()


def by_name(name):
    """A function that reads a data set of TFDS, for `run`."""

    def read(settings):
        bank, test = (
            data.read_named(
                name, split, data_dir=settings.data_dir, examples=examples
            ).load()
            for split, examples in (
                ("train", settings.train_examples),
                ("test", settings.test_examples),
            )
        )
        return Images(bank, bank, test)

    return read


def pretrain(settings, recipe, read):
    """Trains an encoder, and leaves it with its record in a folder.

    Args:
        settings: `Settings`.
        recipe: name of the program, for the folder.
        read: see `run`.

    Returns:
        The folder, a `Path`; of many workers, that of the chief, and None to
        the others, which write nothing.
    """
    # First, for TensorFlow must know other hosts before it does anything.
    strategy = distribution.strategy(settings.strategy)
    if settings.batch_size is not None:
        splits(settings, strategy.num_replicas_in_sync)
    own = contextlib.nullcontext((None, False))
    if distribution.is_chief(strategy):
        own = _run_dir.own(settings, recipe)
    with (
        distribution.readable_worker_errors(strategy),
        own as (folder, completed),
    ):
        if completed and settings.epochs in (
            None,
            _run_dir.begun(folder)["settings"]["epochs"],
        ):
            checkpoint_files.CheckpointFiles(folder / "checkpoints").keep(1)
            print(f"The results of this run are in their places in {folder}")
            return folder
        asked = settings
        settings = of_device = _plan.for_device(settings, strategy)
        if distribution.is_chief(strategy):
            device = distribution.describe(strategy)
            print(f"Training on: {device}; {settings.precision}")
            print("Reading the images ...", flush=True)
        keras.config.set_dtype_policy(settings.precision)
        with distribution.chief_first(strategy):  # it may prepare the data
            images = read(settings)
        if distribution.is_chief(strategy):
            _say_what_there_is(images)
        _check_evaluation(images)
        num_images = images.train.num_examples
        settings = _plan.for_images(settings, num_images, strategy)
        model = _built(settings, images, strategy)
        fitting = _plan.for_memory(
            settings, of_device, model, num_images, strategy
        )
        if fitting != settings:
            settings = fitting
            model = _built(settings, images, strategy)
        start = None
        if folder is not None:
            _plan.say(asked, settings, model, images, strategy)
            if settings.init_from and not _run_dir.has_checkpoint(folder):
                start = _start.read(settings.init_from, model)
            record = _run_dir.make(settings, recipe, images, strategy)
            _run_dir.open_folder(folder, record)
            _run_dir.write_skipped(folder / "skipped.csv", images.train.skipped)
        with _saying_how_to_go_on(folder):
            _train_and_leave(settings, images, model, start, folder)
            # Should the chief fail, all start again.
            distribution.barrier(strategy)
        return folder


def _built(settings, images, strategy):
    # Not before: a data set that is prepared first takes random numbers.
    keras.utils.set_random_seed(settings.seed)
    with strategy.scope():
        return build_model(
            settings,
            images.train.num_examples,
            images.bank.images.shape[1],
            strategy.num_replicas_in_sync,
        )


def _check_evaluation(images):
    """Refuses what cannot be evaluated, before it is trained on."""
    for images_of, what in (
        (images.bank, "to compare with"),
        (images.test, "to test with"),
    ):
        if not len(images_of.images):
            raise ValueError(
                "A run evaluates its encoder by test images and their nearest "
                f"among others, and needs one of each at least. Received: no "
                f"images {what}, of {images.train.num_examples} in all. Add "
                "images, or lower --test_examples."
            )


@contextlib.contextmanager
def _saying_how_to_go_on(folder):
    how = (
        "To go on, give the same command again, with "
        f"{_plan.how_to_resume(folder)}"
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


def _train_and_leave(settings, images, model, start, folder):
    """Trains, and writes what there is to write where there is a folder."""
    train, bank, test, _ = images
    labelled = _why_no_knn(images) is None
    callbacks, metrics = [moco_keras.callbacks.StopOnNaN()], {}
    if labelled:
        monitor = moco_keras.callbacks.KNNMonitor(
            bank, test, every=settings.knn_every
        )
        monitor.set_model(model)
        if folder is not None:
            print("Evaluating the untrained encoder ...", flush=True)
        metrics["knn_untrained"] = monitor.evaluate()["knn"]
        callbacks.append(monitor)
    if settings.init_from:
        _start.give(model, start, model.distribute_strategy)
    checkpoints, stack = None, contextlib.ExitStack()
    if folder is not None:
        _before(images, metrics)
        _say_what_it_begins_with(settings, start, folder)
        log = _run_dir.History(folder / "history.csv")
        plain = stack.enter_context(paths.plain(folder))
        board = keras.callbacks.TensorBoard(plain / "logs", write_graph=False)
        callbacks += [log, board, _plan.Pace(folder)]
        checkpoints = folder / "checkpoints"
    checkpoint = moco_keras.Checkpoint(checkpoints, settings.checkpoint_every)
    if isinstance(train, data.ImageStream):
        views = data.two_views(train, model.augmenter, settings.batch_size)
        fit = functools.partial(model.fit, views)
    else:
        fit = functools.partial(
            model.fit, train.images, batch_size=settings.batch_size
        )
    start = time.perf_counter()
    with stack:
        history = fit(
            epochs=settings.epochs,
            callbacks=[*callbacks, checkpoint],
            verbose="auto" if folder is not None else 0,
        )
    seconds = time.perf_counter() - start
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
        metrics["history"] = log.epochs
        _leave(folder, model, found, bank, test, metrics, timing)
        _print_summary(metrics, bank, speed, folder)


def _say_what_there_is(images):
    if images.train.skipped:
        print(image_files.summary(images.train.skipped))
    for note in images.notes:
        print(note)


def _before(images, metrics):
    """Prints what to compare a training with."""
    _, bank, test, _ = images
    if why := _why_no_knn(images):
        print(f"No kNN: {why}")
    if "knn_untrained" in metrics:
        metrics["knn_raw_pixels"] = knn.accuracy(
            features.unit_rows(_few_pixels(bank.images)),
            bank.labels,
            features.unit_rows(_few_pixels(test.images)),
            test.labels,
        )
        print(
            f"kNN ({_neighbours(bank)}) of {len(test.images)} test images: of "
            f"raw pixels {metrics['knn_raw_pixels']:.3f}, of the untrained "
            f"encoder {metrics['knn_untrained']:.3f}"
        )


def _why_no_knn(images):
    """Why there is no kNN, and how to get one; None where there is one."""
    if not (images.bank.labelled and images.test.labelled):
        return (
            "not all images to evaluate with have a class. Put the images of "
            "each class into a folder of their own."
        )
    if len(np.unique(images.bank.labels)) < 2:
        return (
            "all images to compare with are of one class, so that any encoder "
            "would find it. Put the images of each class into a folder of "
            "their own, and give --images the folder that holds these."
        )
    return None


def _few_pixels(images):
    """Of large images every n-th pixel: thousands would fill the memory."""
    step = max(1, images.shape[1] // 32)
    return images[:, ::step, ::step]


def _say_what_it_begins_with(settings, start, folder):
    if start is not None:
        print(f"Begins with the weights and the queue of {settings.init_from}")
    after = _run_dir.begun(folder).get("continued_after_epochs")
    if after:
        print(
            f"This run was finished after {after[-1]} epochs, and goes on to "
            f"{settings.epochs}. Its learning rate is now that of a run of "
            f"{settings.epochs} epochs: higher again at first."
        )


def _leave(folder, model, found, bank, test, metrics, timing):
    """Writes what a run is for; its last checkpoint stays, to continue it."""
    print("\nWriting the encoder, the model and pictures ...", flush=True)
    training = _run_dir.training(_run_dir.begun(folder), metrics)
    with _run_dir.results(folder) as place:
        moco_keras.export_encoder(model, place / "encoder", training=training)
        model.save(place / "model.keras")
        _run_dir.write_json(place / "timing.json", timing)
        _run_dir.write_json(place / "metrics.json", metrics)
        _draw(place, model, found, bank, test, metrics)
    checkpoint_files.CheckpointFiles(folder / "checkpoints").keep(1)


def _neighbours(bank):
    """How many vote, in words."""
    k = knn.default_k(bank.labels)
    return f"k={k}" if k == 200 else f"k={k}, the smallest class's images"


def splits(settings, num_replicas):
    """Groups of batch norm on each device; one device and many form the same.

    Args:
        settings: `Settings`.
        num_replicas: devices that share each step.

    Raises:
        ValueError: if devices, or groups, would be of unequal sizes.
    """
    of_batch = f"--batch_size={settings.batch_size}"
    share, rest = divmod(settings.batch_size, num_replicas)
    if rest:
        raise ValueError(
            f"--batch_size must be a multiple of the {num_replicas} devices "
            f"that share it. Received: {of_batch}. Give "
            f"--batch_size={(share + 1) * num_replicas}, for example."
        )
    groups = max(1, (settings.bn_splits or 1) // num_replicas)
    if share % groups:
        devices = f", {num_replicas} devices" if num_replicas > 1 else ""
        raise ValueError(
            "--bn_splits must divide --batch_size into groups of one size. "
            f"Received: --bn_splits={settings.bn_splits}, {of_batch}{devices}. "
            f"Give --bn_splits={math.gcd(share, groups) * num_replicas}, for "
            "example, or other batches."
        )
    return groups


def build_model(settings, num_images, image_size, num_replicas=1):
    """The compiled `MoCo` of the settings, for views (N, S, S, 3)."""
    if settings.batch_size > num_images:
        raise ValueError(
            "--batch_size must be at most the number of training images. "
            f"Received: --batch_size={settings.batch_size}, {num_images} "
            "images."
        )
    encoder = moco_keras.build_encoder(
        settings.encoder,
        image_size,
        settings.projection_dim,
        head=settings.head,
        stem=settings.stem,
        width=settings.width,
        bn_splits=splits(settings, num_replicas),
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
    steps_per_epoch = num_images // settings.batch_size
    learning_rate = moco_keras.schedules.EpochCosine(
        settings.learning_rate, steps_per_epoch, settings.epochs
    )
    model.compile(
        optimizer=moco_keras.optimizers.SGD(learning_rate, l2=settings.l2)
    )
    return model


def _draw(folder, model, found, bank, test, metrics):
    """Draws what it can: a run is complete without its pictures."""
    shown = test.images[:8]

    def curves(path):
        plotting.curves(
            metrics["history"],
            path,
            metrics.get("knn_raw_pixels"),
            metrics.get("knn_untrained"),
        )

    def views(path):
        im_q, im_k = model.augmenter(shown), model.augmenter(shown)
        plotting.views(shown, im_q, im_k, path)

    def neighbours(path):
        bank_features, test_features = found
        k = min(5, len(bank.images))
        _, rows = knn.nearest(bank_features, test_features[:8], k)
        plotting.neighbours(
            shown,
            test.labels[:8],
            bank.images[rows],
            bank.labels[rows],
            test.class_names if "knn_trained" in metrics else [],
            path,
        )

    for draw in (curves, views, neighbours):
        file = folder / f"{draw.__name__}.png"
        try:
            draw(file)
        except Exception as error:  # of fonts, names, the disk
            file.unlink(missing_ok=True)
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            print(
                f"Warning: {file.name} was not drawn: {reason}. All else that "
                "the run is for is there.",
                file=sys.stderr,
            )


def _print_summary(metrics, bank, images_per_second, folder):
    if "knn_trained" in metrics:
        print(f"\nkNN ({_neighbours(bank)}), share of test images right")
        for name in ("raw_pixels", "untrained", "trained"):
            print(f"  {name.replace('_', ' '):<12}{metrics[f'knn_{name}']:.3f}")
    if images_per_second:
        print(f"{images_per_second:.0f} images a second")
    print(f"The encoder, its record and its pictures are in {folder}")
