"""What a training run would take on this machine, measured on a few steps."""

import concurrent.futures
import contextlib
import dataclasses
import io
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np

from moco_keras import data, distribution
from moco_keras.distribution import accelerators
from moco_keras.evaluation import features
from moco_keras.recipes import (
    _data,
    _pixels,
    _pretrain,
    _threads,
    _trial,
    image_folder,
)

_SECONDS = 6  # of steps that are measured
_FEWEST = 4  # batches that are read, to measure how fast
_FEW_IMAGES = 8  # in a batch, to measure how fast images are read
_IN_MEMORY = 4096  # images of a data set that are trained on
_EVALUATED = 5000  # images that a run holds to evaluate with, at most
_REHEARSED = 1024  # images, at most
_REHEARSED_SECONDS = 15  # of reading them, at most
_READ = 4  # times that a rehearsal reads an image


def step_seconds(settings, model, found):
    """Seconds of a training step, with its reading.

    Args:
        settings: `Settings`, complete.
        model: that of the settings.
        found: `_doctor_look.Found`.
    """
    train = _repeated(found.stream, settings.batch_size)
    if found.folder is None:  # its program holds the images in memory
        train = train.load(min(_IN_MEMORY, train.num_examples))
    fit = _pretrain.fitter(model, train, settings.batch_size)
    return _trial.measure(fit, _SECONDS, model.distribute_strategy).step


def _repeated(stream, count):
    """The images of a stream again and again, if it has fewer than `count`."""
    times = -(-count // stream.num_examples)
    if times == 1:
        return stream
    return stream._replace(
        encoded=lambda key: stream.encoded(key).repeat(times),
        num_examples=times * stream.num_examples,
    )


def reading_seconds(settings, stream):
    """Seconds that it takes to cut the two views of an image, on all cores.

    Args:
        settings: `FolderSettings`, with an image size.
        stream: `data.ImageStream`.
    """
    augmenter = _pixels.augmenter(settings, settings.image_size)
    size = min(_FEW_IMAGES, stream.num_examples)
    views = data.two_views(stream, augmenter, size)
    batches = views.training_batches(distribution.strategy("none"))
    ends = []
    for _ in batches.read(0, True, 0, 0, 0):
        ends.append(time.perf_counter())
        if len(ends) > _FEWEST and ends[-1] - ends[0] > _SECONDS / 2:
            break
    return (ends[-1] - ends[0]) / (len(ends) - 1) / size


def memory(found, settings, model):
    """Bytes that a training run takes at its peak.

    Args:
        found: `_doctor_look.Found`.
        settings: `FolderSettings`, complete.
        model: that of the settings, after `step_seconds` has trained it.

    Returns:
        Of a GPU, what steps and an evaluation took. Of a computer, what the
        program took in a process of its own, libraries included, on some of the
        images; where reading them would take too long, what this process took.
        None if it is not known.

    Raises:
        ValueError: if the process was killed, or for what the program refuses.
    """
    if accelerators.on_gpu():
        # A second process would find the memory taken by this one.
        count = min(256, found.stream.num_examples)
        some = found.stream.load(count, image_size=settings.image_size)
        features.extract(model, some.images)
        return accelerators.peak_memory()
    most = int(_REHEARSED_SECONDS / _READ / found.seconds_of_image)
    count = min(_REHEARSED, len(found.looks), most)
    if count < settings.batch_size:  # reading takes too long
        needed, count = accelerators.peak_memory(), 0
    else:
        needed = _rehearse(found, settings, count)
    held = _EVALUATED if found.folder is not None else found.num_images
    missing = max(0, min(held, found.num_images) - count)
    of_image = settings.image_size**2 * found.stream.channels
    of_image *= np.dtype(found.stream.image_dtype).itemsize
    return needed and needed + missing * of_image


def _rehearse(found, settings, count):
    """Runs the program on some of the images; returns its memory."""
    with tempfile.TemporaryDirectory() as place:
        settings = dataclasses.replace(
            settings,
            data_dir=found.data_dir,
            train_examples=count,
            test_examples=count if found.folder is None else None,
            epochs=1,
            run_dir=str(Path(place, "run")),
        )
        if found.folder is not None:
            images = Path(place, "images")
            _link(found, count, images)
            settings = dataclasses.replace(settings, images=str(images))
        spawned = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, spawned) as pool:
            try:
                run = pool.submit(run_program, settings, found.recipe)
                return run.result()
            except concurrent.futures.BrokenExecutor as error:
                raise ValueError(
                    "A training run must fit this machine. Received: one of "
                    f"{count:,} images was killed, most likely because memory "
                    "ran out. Free memory, and try again."
                ) from error
            except BaseException:
                for process in multiprocessing.active_children():
                    process.kill()
                raise


def _link(found, count, place):
    """Makes a folder of some of the images, at random."""
    train, others = found.files
    order = np.random.default_rng(0).permutation(len(train))[:count]
    for path in map(Path, [*(train[i] for i in order), *others[:count]]):
        link = place / path.relative_to(found.folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())


def run_program(settings, recipe):
    """Runs a program of pre-training without a word; returns its memory.

    Args:
        settings: `FolderSettings`, complete.
        recipe: its name.
    """
    _threads.share_cores()
    read = (
        image_folder.read if recipe == "image_folder" else _data.by_name(recipe)
    )
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        _pretrain.pretrain(settings, recipe, read)
    return accelerators.peak_memory()
