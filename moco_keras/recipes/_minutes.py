"""The epochs that there is time for, where --minutes is given."""

import dataclasses
import itertools
import time

from moco_keras.evaluation import features
from moco_keras.recipes import _defaults, _evaluation, _trial

_MEASURED = 0.01  # of the time, on steps
_LEAST, _MOST = 5, 30  # seconds of measuring
_BESIDE = 0.03  # of a step's time, for checkpoints and for `HealthMonitor`
_RESULTS = 15  # seconds, to write the encoder and to draw the pictures
_SHORT = 10  # seconds of an evaluation, of which compiling may be most


def fit_epochs(settings, fit, model, images, strategy, began):
    """Measures how fast this machine is, and chooses the epochs.

    Args:
        settings: `Settings`, complete but for the epochs.
        fit: `fit` of the model, which needs only the other arguments.
        model: that of the settings, which is trained for some steps.
        images: `_data.Images`.
        strategy: that trains.
        began: when the program did, of `time.monotonic`.

    Returns:
        The settings, and the kNN accuracy of the model before its steps, or
        None where there is none.

    Raises:
        ValueError: on the chief, if there is not even time for a step.
    """
    monitor = _evaluation.monitor(settings, model, images)
    evaluate = monitor and monitor.evaluate
    if monitor is None:  # a run extracts features even so, for its pictures

        def evaluate():
            for x in (images.bank, images.test):
                features.extract(model, x.images)

    found, evaluation = _timed(evaluate)
    if _trial.of_chief(evaluation < _SHORT, strategy):
        found, evaluation = _timed(evaluate)
    seconds = 60 * settings.minutes
    measured = min(max(_LEAST, _MEASURED * seconds), _MOST)
    speed = _trial.measure(fit, measured, strategy)

    def choose():
        steps = images.train.num_examples // settings.batch_size
        left = seconds - (time.monotonic() - began) - speed.start - _RESULTS
        epochs, steps = plan(
            left,
            (1 + _BESIDE) * speed.step,
            evaluation,
            settings.knn_every if monitor else None,
            settings.steps_per_epoch or steps,
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
    return (
        _defaults.complete(asked, choose, strategy),
        found and found["knn"],
    )


def plan(seconds, step, evaluation, knn_every, steps_of_pass):
    """Epochs, and the steps of each, that take some time together.

    Args:
        seconds: there are.
        step: seconds of a training step.
        evaluation: seconds of an evaluation.
        knn_every: epochs between evaluations, beside the first and the last;
            None for one, after training.
        steps_of_pass: the most steps of an epoch.

    Returns:
        Two integers; no steps if there is no time for them.
    """

    def steps_of(epochs):
        evaluations = 1
        if knn_every:
            rest = range(knn_every, epochs, knn_every)
            evaluations = len({1, *rest, epochs})
        left = seconds - evaluations * evaluation
        return max(0, int(left / step) // epochs)

    fewest = next(e for e in itertools.count(1) if steps_of(e) <= steps_of_pass)
    # Steps may be left over, fewer than epochs: some more divide them better.
    epochs = max(
        range(fewest, 2 * fewest), key=lambda epochs: epochs * steps_of(epochs)
    )
    return epochs, steps_of(epochs)


def _timed(function):
    began = time.perf_counter()
    found = function()
    return found, time.perf_counter() - began
