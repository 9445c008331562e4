"""The callback that measures whether an encoder is healthy, without labels."""

import math
import warnings

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from moco_keras import arguments, distribution
from moco_keras.data import checks
from moco_keras.evaluation import alarms, features, health
from moco_keras.models import encoders
from moco_keras.momentum import parameters

_ALWAYS = 3  # epochs at the beginning, in which most ills show
_TRAINED = (
    16  # images, for each of the sample, from one measurement to the next
)
_BATCH = 256
_SHOWN = 1024  # keys of the queue, to take similarities with


class HealthMonitor(keras.callbacks.Callback):
    """Measures an encoder without labels, and warns when it is ill.

    It draws some images and two views of each, once, and encodes them in
    inference mode at the end of epochs. What it finds goes into the logs, in
    columns that begin with `health_`; docs/health.md explains them. It changes
    nothing in the training run.

    The first three epochs are measured, the last, and of the others as many as
    cost little: one each time that 16 times the sample was trained on.

    Args:
        images: uint8 (N, H, W, 3), the training images or some of them. Or
            pairs of views (im_q, im_k), float (N, S, S, 3) each, if the model
            has no augmenter.
        labels: int (N,) or (N, 1), classes from 0, -1 for an image without one;
            used for `health_same_class` alone.
        num_images: that are trained on; by default N.
        sample_size: how many images are drawn, at most N.
        on_alarm: whether to "warn" of an illness, once of each kind, or to
            "stop" with an error.

    Attributes:
        setup: `alarms.Setup`, what is known before training.
        alarms: list of `alarms.Alarm`, those so far.
        similarities: of the last measurement, of queries with their keys,
            float32 (n,), and with keys of the queue, (n, m); or None.

    Raises:
        ValueError: if an argument is not as above, or, with
            `on_alarm="stop"`, at the first alarm.

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
        views = images if isinstance(images, tuple) else None
        if views is not None:
            checks.check_pair(*views)
            images = views[0]
        else:
            checks.check_images(images)
        sample_size = arguments.whole(sample_size=sample_size)
        count = len(images)
        if count < 2:
            raise ValueError(
                "`images` must be two or more, to be compared with each other. "
                f"Received: {count}."
            )
        self.num_images = count
        if num_images is not None:
            self.num_images = arguments.whole(num_images=num_images)
        rows = np.random.default_rng(0).permutation(count)[:sample_size]
        rows.sort()
        self._every = math.ceil(_TRAINED * len(rows) / self.num_images)
        self._constant = {}
        if views is not None:
            self._images = tuple(x[rows] for x in views)
        else:
            self._images = images[rows]
            self._constant["copies"] = health.share_of_copies(images)
            self._constant["blank"] = health.share_of_blank(self._images)
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

    def set_model(self, model):
        super().set_model(model)
        encoder, key_encoder = model.query_encoder, model.key_encoder
        with model.distribute_strategy.scope():
            backbone = encoders.backbone(encoder)
            queries = keras.Model(
                encoder.input, [backbone.output, encoder.output]
            )

        # Keras's `predict` would take longer than the arithmetic. All replicas
        # hold the same weights, so that one of them can do it.
        @tf.function
        def encode(im_q, im_k):
            outputs = queries(im_q, training=False)
            return *outputs, key_encoder(im_k, training=False)

        self._encode_batch = encode

    def on_train_begin(self, logs=None):
        """Draws the views, and warns of what is known by now."""
        self._rows, self._untold = [], []
        equal = self._draw_views()
        queue = getattr(self.model, "queue", None)
        momentum = self.model.momentum
        self.setup = alarms.Setup(
            self.num_images,
            self.model.query_encoder.output_shape[-1],
            queue and queue.size,
            getattr(self.model, "temperature", None),
            None if callable(momentum) else momentum,
            1 + getattr(self.model, "symmetric", False),
            self._constant.get("copies"),
            self._constant.get("blank"),
            equal,
        )
        self._add(alarms.before_training(self.setup))
        self._tell()

    def _draw_views(self):
        """Sets the views; returns the share of images that have two equal."""
        pairs, images = [], self._images
        pixels = encoders.takes_pixels(self.model.query_encoder)
        given = isinstance(images, tuple)
        equal = []
        for number, start in enumerate(
            range(0, len(images[0] if given else images), _BATCH)
        ):
            part = slice(start, start + _BATCH)
            batch = tuple(x[part] for x in images) if given else images[part]
            views = [
                ops.convert_to_numpy(x)
                for x in self.model.fixed_views(batch, number)
            ]
            equal.extend((views[0] == views[1]).all(axis=(1, 2, 3)))
            if pixels:  # a fourth of the memory
                views = [np.clip(np.rint(x), 0, 255) for x in views]
                views = [x.astype("uint8") for x in views]
            pairs.append(views)
        self._views = [np.concatenate(x) for x in zip(*pairs, strict=True)]
        return float(np.mean(equal))

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
                (health.PREFIX + name, x) for name, x in self.measure().items()
            )
            self._rows.append({**logs, "epoch": number})
            self._add(alarms.of_epoch(self.setup, self._rows))

    def on_train_end(self, logs=None):
        self._tell()

    def measure(self):
        """Returns what is logged, a dict of floats without the prefix."""
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
        outputs = self._encode()
        if not all(np.isfinite(x).all() for x in outputs):
            return found
        return {**found, **self._measure(*outputs)}

    def _encode(self):
        """Features and projections of queries, and projections of keys."""
        self.model.average_statistics()
        outputs = []
        for start in range(0, len(self._views[0]), _BATCH):
            views = [x[start : start + _BATCH] for x in self._views]
            missing = min(_BATCH, len(self._views[0])) - len(views[0])
            padding = ((0, missing), *[(0, 0)] * 3)  # one shape, one trace
            batch = [np.pad(x, padding, mode="edge") for x in views]
            encoded = self._encode_batch(*batch)
            outputs.append([x.numpy()[: len(views[0])] for x in encoded])
        return [
            np.concatenate(x).reshape(len(self._views[0]), -1).astype("float32")
            for x in zip(*outputs, strict=True)
        ]

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
        """Keeps alarms of new kinds, of which it is to be told."""
        known = {alarm.kind for alarm in self.alarms}
        new = [alarm for alarm in found if alarm.kind not in known]
        self.alarms += new
        self._untold += new

    def _tell(self):
        """Warns of alarms, or stops at the first."""
        for alarm in self._untold:
            message = f"Health, {alarm.kind}: {alarm.text}"
            if self.on_alarm == "stop":
                raise ValueError(message)
            if distribution.is_chief(self.model.distribute_strategy):
                warnings.warn(message, stacklevel=2)
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
