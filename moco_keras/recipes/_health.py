"""The health of a run, in what every pre-training program shows of it."""

import moco_keras
from moco_keras import data
from moco_keras.evaluation import alarms

_SAMPLE = 1024


def monitor(settings, train):
    """The `HealthMonitor` of a run; None for a single image.

    Args:
        settings: `Settings`, complete.
        train: `data.ImageSet` or `data.ImageStream`.
    """
    count = train.num_examples
    if count < 2:
        return None
    some = train
    if isinstance(train, data.ImageStream):
        some = train.load(min(count, _SAMPLE), image_size=settings.image_size)
    return moco_keras.callbacks.HealthMonitor(
        some.images,
        some.labels,
        num_images=count,
        sample_size=_SAMPLE,
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
