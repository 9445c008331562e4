"""Signs that a contrastive run is ill, with what to do about each.

All are functions of numbers that are known before training, and of the columns
that `HealthMonitor` logs, so that a finished run can be judged from its
history.csv. docs/health.md says how often each sign was right.
"""

import math
from typing import NamedTuple

from moco_keras.evaluation.health import PREFIX

_MOST_COPIES = 0.05  # shares of the images
_MOST_BLANK = 0.01
_EQUAL = 0.5
_LEAST_MOMENTUM = 0.5
_LEAST_GAIN = 0.1  # of the loss, by a perfect encoder
_COLLAPSED = 0.05  # deviation, where 1 is healthy
_LEAST_RANK = 2.5  # of the projections, at most a fourth of what it can be
_UNLEARNED = 0.015  # of what there is to gain, on both sides of ln(1 + K)
_DIVERGED = 0.25  # of the same, above ln(1 + K)
# Accuracy, until when it is too early for it, and from which K on it is a feat.
_EASY, _EASY_EPOCHS, _EASY_QUEUE = 0.95, 20, 256
_LEAKED = 0.25  # accuracy in training above that in inference mode


class Alarm(NamedTuple):
    """A sign that something is wrong.

    Attributes:
        kind: "blank images", "duplicates", "queue too long", "temperature",
            "equal views", "key encoder", "divergence", "collapse", "partial
            collapse", "no learning", "leak" or "too easy".
        epoch: at whose end it was seen, from 1; 0 before training.
        text: the sign, its number, the likely cause, and what to do.
    """

    kind: str
    epoch: int
    text: str


class AlarmError(ValueError):
    """The error with which an alarm stops a run."""


class Setup(NamedTuple):
    """What is known before training. None stands for what is not.

    Attributes:
        num_images: that are trained on.
        sample_size: how many of them are measured.
        projection_dim: length of a projection, C.
        queue_size: number of keys, K.
        temperature, momentum: as in `MoCo`, numbers.
        keys_per_image: that enter the queue in an epoch; 2 if symmetric.
        copies: share of images that equal an earlier one.
        blank: share of images of one color.
    """

    num_images: int
    sample_size: int
    projection_dim: int
    queue_size: int | None = None
    temperature: float | None = None
    momentum: float | None = None
    keys_per_image: int = 1
    copies: float | None = None
    blank: float | None = None

    @property
    def chance(self):
        """The loss of a guess, ln(1 + K) for each query, in nats."""
        return self.keys_per_image * math.log1p(self.queue_size)

    @property
    def gain(self):
        """By how much a perfect encoder's loss is lower, in nats.

        Its positives have similarity 1, and its negatives 0.
        """
        least = math.log1p(self.queue_size * math.exp(-1 / self.temperature))
        return self.chance - self.keys_per_image * least


def before_training(setup):
    """Alarms of images and settings.

    Args:
        setup: a `Setup`.

    Returns:
        A list of `Alarm`s.
    """
    found = {}
    if (setup.blank or 0) >= _MOST_BLANK:
        found["blank images"] = (
            f"{setup.blank:.1%} of the images have one color only. They teach "
            "nothing, and each is a negative that no other can be told from. "
            "Remove them, or look at how they were read."
        )
    if (setup.copies or 0) >= _MOST_COPIES:
        found["duplicates"] = (
            f"{setup.copies:.1%} of the images are exact copies of others. In "
            "the queue they count as negatives of the same image. Remove all "
            "but one of each."
        )
    if setup.queue_size is None:
        return [Alarm(kind, 0, text) for kind, text in found.items()]
    if setup.momentum is not None and setup.momentum < _LEAST_MOMENTUM:
        found["key encoder"] = (
            f"With momentum={setup.momentum:g} the key encoder is nearly a "
            "copy of the query encoder, and the keys in the queue are of "
            "encoders that differ from step to step. Use 0.99 to 0.999."
        )
    if setup.queue_size > setup.num_images * setup.keys_per_image:
        found["queue too long"] = (
            f"The queue of {setup.queue_size:,} keys is longer than an epoch "
            f"of {setup.num_images:,} images, so that it holds older keys of "
            "every image, which count as its negatives. Set `queue_size` to "
            "half of the images or less, but to a step's keys at least."
        )
    if setup.temperature and setup.gain < _LEAST_GAIN * setup.chance:
        found["temperature"] = (
            f"With temperature={setup.temperature:g} all keys look alike: even "
            "a perfect encoder would lower the loss only from "
            f"{setup.chance:.3f} to {setup.chance - setup.gain:.3f}. Use 0.07 "
            "to 0.5."
        )
    return [Alarm(kind, 0, text) for kind, text in found.items()]


def of_epoch(setup, rows):
    """Alarms of the last of some epochs.

    Args:
        setup: a `Setup`.
        rows: dicts, what `HealthMonitor` and `fit` logged of the epochs that
            were measured so far, and their "epoch", from 1.

    Returns:
        A list of `Alarm`s. An ill encoder has many signs. Those that follow
        from another are left out.
    """
    row = rows[-1]

    def alarm(kind, text):
        return [Alarm(kind, int(row["epoch"]), text)]

    def value(name):
        return row[PREFIX + name]

    if PREFIX + "alignment" not in row:
        return alarm(
            "divergence",
            "The encoder returns numbers that are not finite. The learning "
            "rate is too high. Begin again with a tenth of it.",
        )
    equal = row.get(PREFIX + "equal_views", 0)
    if equal >= _EQUAL:
        return alarm(
            "equal views",
            f"The two views of {equal:.0%} of the images are "
            "equal, so that finding the other one teaches nothing. Use an "
            "augmenter that changes every image at random, such as "
            "`augmentations.moco_v2`.",
        )
    deviation = value("deviation_projections")
    if deviation < _COLLAPSED and row["epoch"] > 1:
        return alarm(
            "collapse",
            "Different images have nearly the same projection: deviation "
            f"{deviation:.3f}, where 1 is healthy and 0 a collapse. The "
            "learning rate may be too high, or a layer of the head dead. Begin "
            "again with a tenth of the learning rate.",
        )
    rank = value("rank_projections")
    most = min(setup.projection_dim, setup.sample_size)
    least = min(_LEAST_RANK, most / 4)
    if rank < least and row["epoch"] > 1:
        return alarm(
            "partial collapse",
            f"The projections of different images use {rank:.1f} directions of "
            f"{setup.projection_dim}. The learning rate may be too high, the "
            "images too few or too alike, or a layer too narrow. Begin again "
            "with a lower learning rate.",
        )
    if value("key_distance") == 0 and (setup.momentum or 0) > 0:
        return alarm(
            "no learning",
            "The query encoder has not moved: the key encoder, which follows "
            "it, still equals it. Look for layers that are frozen or dead, and "
            "for a learning rate of 0.",
        )
    known = setup.queue_size and setup.temperature
    if not known or not _queue_was_real(rows):
        return []
    losses = [(r["loss"] - setup.chance) / setup.gain for r in rows[-2:]]
    if losses[-1] > _DIVERGED:
        return alarm(
            "divergence",
            f"The loss of {row['loss']:.3f} is far above {setup.chance:.3f}, "
            "that of a guess: images are less like their own keys than like "
            "others. The learning rate is too high. Begin again with a tenth "
            "of it.",
        )
    if max(map(abs, losses)) < _UNLEARNED:
        return alarm(
            "no learning",
            f"The loss stays at {row['loss']:.3f}, that of a guess, ln(1 + K) "
            f"= {setup.chance:.3f}. The learning rate may be too high or too "
            "low, or the views may have nothing in common. Try a tenth of the "
            "learning rate, then views that show more of an image.",
        )
    trained, inferred = row["contrastive_accuracy"], value("accuracy")
    if trained - inferred > _LEAKED:
        return alarm(
            "leak",
            f"In training {trained:.2f} of the queries find their keys, in "
            f"inference mode {inferred:.2f}. Statistics of the batch seem to "
            "give the answer away. Normalize queries and keys in different "
            'groups: `bn_splits`, with `shuffle="replicas"`.',
        )
    early = row["epoch"] <= _EASY_EPOCHS
    if trained > _EASY and early and setup.queue_size >= _EASY_QUEUE:
        return alarm(
            "too easy",
            f"{trained:.2f} of the queries find their keys after "
            f"{row['epoch']:.0f} epochs: the two views are too alike. Use "
            "stronger augmentation, such as smaller crops.",
        )
    return []


def find(setup, rows):
    """All alarms of a run, the first of each kind.

    Args:
        setup: a `Setup`.
        rows: dicts of numbers, as in `of_epoch`. Those without columns of a
            `HealthMonitor`, of epochs that were not measured, are left out.

    Returns:
        A list of `Alarm`s, in the order of their epochs.
    """
    measured = [r for r in rows if any(name.startswith(PREFIX) for name in r)]
    found = before_training(setup)
    for i in range(len(measured)):
        found += of_epoch(setup, measured[: i + 1])
    first = {}
    for alarm in found:
        first.setdefault(alarm.kind, alarm)
    return list(first.values())


def _queue_was_real(rows):
    """Whether no random key was left when the last epoch began."""
    ages = [row[PREFIX + "queue_age"] for row in rows[-2:]]
    return len(ages) == 2 and ages[0] == ages[1]
