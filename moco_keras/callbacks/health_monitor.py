"""The callback that measures whether an encoder is healthy, without labels."""

import math
import warnings

import keras
import numpy as np
from keras import ops

from moco_keras import arguments, distribution
from moco_keras.callbacks.view_sample import ViewSample
from moco_keras.data.image_sets import ImageSet
from moco_keras.evaluation import alarms, features, health
from moco_keras.momentum import parameters

_ALWAYS = 3  # epochs at the beginning, in which most ills show
_TRAINED = 16  # images between two measurements, for each of the sample
_SHOWN = 1024  # keys of the queue, to take similarities with


class HealthMonitor(keras.callbacks.Callback):
    """Measures an encoder without labels, and warns when it is ill.

    It draws some images and two views of each, once, and encodes them in
    inference mode at the end of epochs. What it finds goes into the logs, in
    columns that begin with `health_`; docs/health.md explains them. If a Keras
    layer cuts the views, they are the same in every process, and nothing of the
    training run changes. Another augmenter is called as in training.

    The first three epochs are measured, the last of `epochs`, and of the others
    as many as cost little: one each time that 16 times the sample was trained
    on.

    Args:
        images: (N, H, W, C), the training images, or some of them with
            `num_images`; or a `data.ImageSet`. Or pairs of views (im_q, im_k),
            float (N, H, W, C) each, if the model has no augmenter.
        labels: int (N,) or (N, 1), classes from 0, -1 for an image without one;
            used for `health_same_class` alone. By default those of an
            `ImageSet`.
        num_images: that are trained on; by default N.
        images_per_epoch: that an epoch has, if you give `fit` its
            `steps_per_epoch`; by default `num_images`.
        copies: share of these that equal an earlier one; by default it is
            counted if `images` are all that are trained on.
        sample_size: how many images are drawn, at most N.
        on_alarm: whether to "warn" of an illness, once of each kind, or to
            "stop" with an error, after the epoch was logged and saved.

    Attributes:
        setup: `alarms.Setup`, what is known before training.
        alarms: list of `alarms.Alarm`, those so far.
        similarities: of the last measurement, of queries with their keys,
            float32 (n,), and with keys of the queue, (n, m); or None.

    Raises:
        ValueError: if an argument is not as above, or if the model cannot cut
            or take the views.
        alarms.AlarmError: a `ValueError`, with `on_alarm="stop"`.

    Reference:
        Those of the functions in `evaluation.health`.

    Example:
        >>> monitor = callbacks.HealthMonitor(images)
        >>> model.fit(images, epochs=200, callbacks=[monitor])
    """

    def __init__(
        self,
        images,
        labels=None,
        *,
        num_images=None,
        images_per_epoch=None,
        copies=None,
        sample_size=1024,
        on_alarm="warn",
    ):
        super().__init__()
        if on_alarm not in ("warn", "stop"):
            raise ValueError(
                '`on_alarm` must be "warn" or "stop". Received: '
                f"on_alarm={on_alarm!r}."
            )
        self.on_alarm = on_alarm
        self.alarms, self.similarities, self.setup = [], None, None
        self._rows, self._untold = [], []
        if isinstance(images, ImageSet):
            labels = images.labels if labels is None else labels
            images = images.images
        sample_size = arguments.whole(sample_size=sample_size)
        if sample_size < 2:
            raise ValueError(
                "`sample_size` must be two or more, because images are "
                "compared with each other. Received: "
                f"sample_size={sample_size}."
            )
        self._sample = ViewSample(images, sample_size)
        count = self._sample.num_images
        self.num_images = count
        if num_images is not None:
            self.num_images = arguments.whole(num_images=num_images)
        rows = self._sample.rows
        if images_per_epoch is None:
            images_per_epoch = self.num_images
        images_per_epoch = arguments.whole(images_per_epoch=images_per_epoch)
        self._every = math.ceil(_TRAINED * len(rows) / images_per_epoch)
        self._constant = {}
        are_images = not self._sample.are_pairs
        if copies is None and are_images and self.num_images == count:
            copies = health.share_of_copies(np.asarray(images))
        if copies is not None:
            copies = arguments.real(arguments.FRACTION, copies=copies)
            self._constant["copies"] = copies
        if labels is not None:
            labels = np.asarray(labels).reshape(-1)
            if len(labels) != count:
                raise ValueError(
                    "`labels` must be one for each image. Received: "
                    f"{len(labels)} of {count} images."
                )
            if (labels[rows] >= 0).any():
                self._constant["same_class"] = health.share_of_class(
                    labels[rows], labels
                )

    def resume(self, epochs):
        """Takes what earlier processes logged of this run, for its alarms.

        Args:
            epochs: dicts of numbers, the columns of each epoch, and "epoch",
                from 1. What was not measured is not in them.
        """
        names = health.PREFIX + "alignment", health.PREFIX + "queue_age"
        self._rows = [row for row in epochs if any(n in row for n in names)]

    def set_model(self, model):
        if self.model is not None and model is not self.model:
            self.alarms, self._rows, self._untold = [], [], []
        super().set_model(model)
        self._sample.set_model(model)
        if not self._sample.are_pairs:
            self._constant["blank"] = health.share_of_blank(
                self._sample.images, model.pixels.bounds
            )

    def on_train_begin(self, logs=None):
        """Warns of what is known by now."""
        queue = getattr(self.model, "queue", None)
        momentum = self.model.momentum
        self.setup = alarms.Setup(
            num_images=self.num_images,
            sample_size=len(self._sample.rows),
            projection_dim=self.model.query_encoder.output_shape[-1],
            queue_size=queue and queue.size,
            temperature=getattr(self.model, "temperature", None),
            momentum=None if callable(momentum) else momentum,
            keys_per_image=1 + getattr(self.model, "symmetric", False),
            copies=self._constant.get("copies"),
            blank=self._constant.get("blank"),
        )
        if self._rows:  # a process before has told, but maybe of the last
            self.alarms = alarms.find(self.setup, self._rows)
            last = self._rows[-1]["epoch"]
            self._untold = [x for x in self.alarms if x.epoch == last]
        self._add(alarms.before_training(self.setup))
        if self.on_alarm == "stop":
            self._untold = list(self.alarms)
        self._tell()

    def on_epoch_begin(self, epoch, logs=None):
        self._tell()  # when all others have done what they do after an epoch
        self._pointer = self._keys_per_step = None

    def on_train_batch_begin(self, batch, logs=None):
        if self._pointer is None and self.setup.queue_size:
            self._pointer = _number(self.model.queue.pointer)

    def on_train_batch_end(self, batch, logs=None):
        if self._keys_per_step is None and self.setup.queue_size:
            size = self.model.queue.size
            pointer = _number(self.model.queue.pointer)
            written = (pointer - self._pointer) % size
            self._keys_per_step = written or size

    def on_epoch_end(self, epoch, logs=None):
        number = epoch + 1
        if (
            number <= _ALWAYS
            or number % self._every == 0
            or number == self.params["epochs"]
        ):
            logs.update(
                (health.PREFIX + name, x) for name, x in self._found().items()
            )
            rows = [row for row in self._rows if row["epoch"] < number]
            self._rows = [*rows, {**logs, "epoch": number}]
            self._add(alarms.of_epoch(self.setup, self._rows))
            if self._is_to_stop():
                self.model.stop_training = True  # which a `Checkpoint` saves

    def on_train_end(self, logs=None):
        self._tell()

    def _found(self):
        """What is logged, a dict of floats without the prefix."""
        found = dict(self._constant)
        if self.setup.queue_size:
            size = self.setup.queue_size
            found["queue_ratio"] = size / self.num_images
            steps = _number(self.model.steps)
            found["queue_age"] = min(steps, -(-size // self._keys_per_step))
        found["key_distance"] = health.relative_distance(
            *(
                [ops.convert_to_numpy(v) for v in parameters(encoder)]
                for encoder in (
                    self.model.query_encoder,
                    self.model.key_encoder,
                )
            )
        )
        outputs = self._sample.encode()
        found["equal_views"] = self._sample.equal_views
        if not all(np.isfinite(x).all() for x in outputs):
            return found
        return {**found, **self._measure(*outputs)}

    def _measure(self, raw_features, raw_q, raw_k):
        x, q, k = (features.unit_rows(x) for x in (raw_features, raw_q, raw_k))
        positives = np.sum(q * k, axis=1)
        found = {
            "alignment": health.alignment(q, k),
            "uniformity": health.uniformity(q),
            "rank_features": health.effective_rank(raw_features),
            "rank_projections": health.effective_rank(raw_q),
            "deviation_features": health.deviation(x),
            "deviation_projections": health.deviation(q),
            "similarity_features": health.mean_similarity(x),
            "similarity_projections": health.mean_similarity(q),
            **_named("positive", positives),
        }
        if self.setup.queue_size:
            keys = ops.convert_to_numpy(self.model.queue.keys)
            found["accuracy"] = health.contrastive_accuracy(q, k, len(keys))
            negatives = q @ keys[:: math.ceil(len(keys) / _SHOWN)].T
            found |= _named("negative", negatives)
            self.similarities = positives, negatives
        return found

    def _add(self, found):
        """Keeps alarms of new kinds, to tell them later."""
        known = {alarm.kind for alarm in self.alarms}
        new = [alarm for alarm in found if alarm.kind not in known]
        self.alarms += new
        self._untold += new

    def _is_to_stop(self):
        """Whether an alarm is to stop the run; the same on all workers.

        After a resume the chief alone may know of the epochs before.
        """
        if self.on_alarm != "stop":
            return False
        stop, strategy = bool(self._untold), self.model.distribute_strategy
        if distribution.is_multi_worker(strategy):
            (stop,) = distribution.all_reduce_sum([int(stop)], strategy)
        return bool(stop)

    def _tell(self):
        """Warns of alarms, or stops at the first."""
        messages = [f"Health, {x.kind}: {x.text}" for x in self._untold]
        if self._is_to_stop():
            found = [*messages, "Health: another worker has found an alarm."]
            raise alarms.AlarmError(
                f'{found[0]} To train anyway, give on_alarm="warn".'
            )
        if distribution.is_chief(self.model.distribute_strategy):
            for message in messages:
                warnings.warn(message, stacklevel=3)
        self._untold = []


def _number(variable):
    """The value of an integer variable, which replicas may hold."""
    return int(ops.convert_to_numpy(variable))


def _named(name, similarities):
    """Quantiles of similarities, by the names of their columns."""
    return {
        f"{name}_{quantile}": x
        for quantile, x in health.quantiles(similarities).items()
    }
