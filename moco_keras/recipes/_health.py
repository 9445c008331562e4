"""The health of a run, in what every pre-training program shows of it."""

import numpy as np

import moco_keras
from moco_keras import data
from moco_keras.evaluation import alarms
from moco_keras.recipes import _pixels

SAMPLE = 1024  # images that are measured


def monitor(settings, train):
    """The `HealthMonitor` of a run; None for a single image.

    Args:
        settings: `Settings`, complete.
        train: `data.ImageSet` or `data.ImageStream`.
    """
    count = train.num_examples
    if count < 2:
        return None
    some, copies = train, None
    if isinstance(train, data.ImageStream):
        some = train.load(
            min(count, SAMPLE),
            image_size=_pixels.parse_size(settings.image_size),
        )
        copies = train.copies
    steps = settings.steps_per_epoch
    return moco_keras.callbacks.HealthMonitor(
        some,
        num_images=count,
        images_per_epoch=steps and steps * settings.batch_size,
        copies=copies,
        sample_size=SAMPLE,
        on_alarm=settings.on_alarm,
    )


def summary(setup, epochs):
    """What metrics.json says of the health of a run.

    Args:
        setup: `alarms.Setup`.
        epochs: dicts of history.csv.
    """
    return {
        "setup": setup._asdict(),
        "alarms": [alarm._asdict() for alarm in alarms.find(setup, epochs)],
    }


def setup_of(record, epochs):
    """What the alarms have to know of a run, an `alarms.Setup`.

    Args:
        record: that of settings.json.
        epochs: dicts of history.csv.
    """
    told, count = record["settings"], record["data"]["train_images"]

    def first(name):
        return next((row[name] for row in epochs if name in row), None)

    return alarms.Setup(
        num_images=count,
        sample_size=min(SAMPLE, count),
        projection_dim=told["projection_dim"],
        queue_size=told["queue_size"],
        temperature=told["temperature"],
        momentum=told["momentum"],
        keys_per_image=1 + told["symmetric"],
        copies=first("health_copies"),
        blank=first("health_blank"),
    )


def chance(setup, test=None):
    """What a guess reaches, as `plotting.curves` takes it.

    Args:
        setup: `alarms.Setup`.
        test: `data.ImageSet` whose labels kNN guesses, or None.
    """
    found = {
        "loss": setup.chance,
        "contrastive_accuracy": 1 / (1 + setup.queue_size),
    }
    if test is not None:  # always the largest class
        largest = np.bincount(test.labels).max()
        found["knn"] = float(largest / len(test.labels))
    return found
