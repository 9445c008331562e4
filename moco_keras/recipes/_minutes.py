"""The epochs that there is time for, where --minutes is given."""

import dataclasses
import math
import time

from moco_keras.evaluation import features
from moco_keras.recipes import _defaults, _evaluation, _trial

_MEASURED = 0.01  # of the time, on steps
_LEAST, _MOST = 5, 30  # seconds of measuring
_BESIDE = 0.05  # of a step's time: checkpoints, `HealthMonitor`, slower hours
_RESULTS = 15  # seconds, to write the encoder and to draw the pictures
_SHORT = 10  # seconds; a shorter evaluation may be mostly compiling
# Over so many epochs the learning rate, which changes after each, falls as it
# should; where their evaluations take no more than this part of the time.
_LEAST_EPOCHS, _EVALUATING = 10, 0.25
_MOST_EPOCHS = 1000


def fit_epochs(settings, fitter, model, images, strategy, began):
    """Measures how fast this machine is, and chooses the epochs.

    Args:
        settings: `Settings`, complete but for the epochs.
        fitter: see `_pretrain.fitter`.
        model: that of the settings, which is trained for some steps.
        images: `_data.Images`.
        strategy: that trains.
        began: when the program did, of `time.monotonic`.

    Returns:
        The settings, and a dict of "knn_untrained" and "knn_raw_pixels", which
        is empty where there is no kNN.

    Raises:
        ValueError: on the chief, if there is not even time for a step.
    """
    monitor, baselines = _evaluation.monitor(settings, model, images), {}
    if monitor is None:  # a run extracts features even so, for its pictures

        def evaluate():
            for x in (images.bank, images.test):
                features.extract(model, x.images)

    else:

        def evaluate():
            baselines["knn_untrained"] = monitor.evaluate()["knn"]

    evaluation = _seconds(evaluate)
    if _trial.of_chief(evaluation < _SHORT, strategy):
        evaluation = _seconds(evaluate)
    if monitor:
        baselines["knn_raw_pixels"] = _evaluation.raw_pixel_accuracy(images)
    seconds = 60 * settings.minutes
    measured = min(max(_LEAST, _MEASURED * seconds), _MOST)
    fit = fitter(model, images.train, settings.batch_size)
    speed = _trial.measure(fit, measured, strategy)
    results = _RESULTS
    if _evaluation.is_probed(settings, monitor):
        results += _seconds(
            lambda: _evaluation.linear_probe(images, monitor.features)
        )

    def choose():
        steps = images.train.num_examples // settings.batch_size
        left = seconds - (time.monotonic() - began) - speed.start - results
        epochs, steps = plan(
            left,
            (1 + _BESIDE) * speed.step,
            evaluation,
            settings.knn_every if monitor else None,
            steps,
        )
        if not steps:
            needed = seconds - left + evaluation + speed.step
            raise ValueError(
                "--minutes must be enough for a training step and what a run "
                f"does before and after. Received: {settings.minutes:g}. Give "
                f"more than {needed / 60:.1f}."
            )
        return {"epochs": epochs, "steps_per_epoch": steps}

    asked = dataclasses.replace(settings, epochs=None, steps_per_epoch=None)
    return _defaults.complete(asked, choose, strategy), baselines


def plan(seconds, step, evaluation, knn_every, steps_of_pass):
    """Epochs, and the steps of each, that take some time together.

    Args:
        seconds: there are.
        step: seconds of a training step.
        evaluation: seconds of an evaluation.
        knn_every: epochs between evaluations, beside the first and the last;
            None for one, after training.
        steps_of_pass: the most steps of an epoch, unless there would be more
            than a thousand epochs.

    Returns:
        Two integers; no steps if there is no time for them.
    """

    def evaluating(epochs):
        if not knn_every or epochs == 1:
            return evaluation
        between = (epochs - 1) // knn_every - (knn_every == 1)
        return (2 + between) * evaluation

    def room(epochs):
        return max(0, int((seconds - evaluating(epochs)) / step) // epochs)

    def steps_of(epochs):
        most = steps_of_pass if epochs < _MOST_EPOCHS else math.inf
        return min(room(epochs), most)

    enough = room(_LEAST_EPOCHS) and (
        evaluating(_LEAST_EPOCHS) <= _EVALUATING * seconds
    )
    least = _LEAST_EPOCHS if enough else 1
    fewest = next(
        (e for e in range(least, _MOST_EPOCHS) if room(e) <= steps_of_pass),
        _MOST_EPOCHS,
    )
    # Steps may be left over, fewer than epochs: some more divide them better.
    # One epoch fewer may save an evaluation, which takes more than they do.
    epochs = max(
        range(max(least, fewest - 1), 2 * fewest),
        key=lambda epochs: epochs * steps_of(epochs),
    )
    return epochs, steps_of(epochs)


def _seconds(function):
    """How long a function takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began
