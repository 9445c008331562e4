"""MoCo as a Keras model."""

import keras
import tensorflow as tf
from keras import ops

from moco_keras import arguments, distribution, shuffle_bn
from moco_keras.group_encoding import encode
from moco_keras.key_queue import KeyQueue
from moco_keras.losses import fused_info_nce
from moco_keras.training.base import PretrainingModel
from moco_keras.training.two_encoders import unit_rows


@keras.saving.register_keras_serializable(package="moco_keras")
class MoCo(PretrainingModel):
    """Momentum Contrast: learns an image encoder without labels.

    A query encoder learns by gradient to find, among the keys held in a queue,
    the key of the other view of its image. The keys come from a second
    encoder, which follows the first one slowly (see `MomentumUpdate`).

    Args:
        encoder: functional `keras.Model` from images, float (N, H, W,
            channels), to projections, (N, C); `build_encoder` makes one. It
            becomes the query encoder, and a copy of it the key encoder.
        augmenter: layer or callable from images of any size to random views,
            float (N, H, W, channels), pixels of the same range. It is called
            twice a batch. Not needed where `fit` gets ready pairs of views.
        queue_size: number of keys in the queue, K of the paper.
        momentum: m of the paper, in [0, 1]: a number, or a schedule of the
            optimizer's `iterations`, such as a Keras `LearningRateSchedule`.
        temperature: divides the similarities.
        symmetric: whether each view serves as query and as key in turn. The two
            losses are added, as the CIFAR-10 notebook does, and 2N keys enter
            the queue.
        shuffle: order of the images in the key encoder, against batch
            statistics that give the answer away. "replicas": a random one over
            all replicas, and on one device over the groups of split batch
            norms, so that keys and queries are grouped differently; "split":
            a random one within each replica; "none": that of the queries.
        view_size: side of the views in pixels, or their height and width, if it
            is not that of the encoder's images. Smaller views take less time,
            and objects look as large in them as in whole images that are larger
            ([Touvron et al., 2019](https://arxiv.org/abs/1906.06423)). All but
            training then works with images of the encoder's size.

    `momentum` and `temperature` may be set at any time, in a callback too, and
    count from the next step on.

    Raises:
        ValueError: if a value is out of range, the encoder does not return one
            vector an image, or the augmenter has another `value_range`.

    Reference:
        Algorithm 1 of [He et al., 2020](https://arxiv.org/abs/1911.05722).

    Example:
        >>> encoder = build_encoder("resnet18", image_size=32)
        >>> model = MoCo(encoder, augmentations.moco_v2(32), queue_size=4096)
        >>> model.compile(optimizer=optimizers.SGD(0.06))
        >>> model.fit(images, batch_size=256, epochs=200)  # uint8 images
        >>> features = moco_keras.features.extract(model, images)
        >>> projections = model.predict(images)  # what the loss compares
    """

    def __init__(
        self,
        encoder,
        augmenter=None,
        *,
        queue_size=65536,
        momentum=0.999,
        temperature=0.07,
        symmetric=False,
        shuffle="replicas",
        view_size=None,
        **kwargs,
    ):
        super().__init__(
            encoder,
            augmenter,
            momentum=momentum,
            view_size=view_size,
            **kwargs,
        )
        self.shuffle = shuffle
        self.queue = KeyQueue(
            arguments.whole(queue_size=queue_size), encoder.output_shape[-1]
        )
        # Not a Keras variable: it is a setting, which a checkpoint of another
        # run must not change.
        self._temperature_variable = tf.Variable(1.0, trainable=False)
        self.temperature = temperature
        self.symmetric = bool(symmetric)
        self.add_state()

    @property
    def temperature(self):
        """A float that divides the similarities."""
        return self._temperature

    @temperature.setter
    def temperature(self, temperature):
        temperature = arguments.real(
            arguments.POSITIVE, temperature=temperature
        )
        self._temperature = temperature
        self._temperature_variable.assign(temperature)

    @property
    def shuffle(self):
        """The order of the images in the key encoder; a string."""
        return self._shuffle

    @shuffle.setter
    def shuffle(self, shuffle):
        if shuffle not in ("replicas", "split", "none"):
            raise ValueError(
                '`shuffle` must be "replicas", "split" or "none". '
                f"Received: shuffle={shuffle!r}."
            )
        self._shuffle = shuffle

    def traced_settings(self):
        """Those that may be set between two calls of `fit`."""
        return *super().traced_settings(), self.symmetric, self.shuffle

    def train_step(self, data):
        """One step of Algorithm 1; `MomentumUpdate` moves the key encoder."""
        pairs = self._pairs(*self.training_views(data))
        keys = [self._encode_keys(im_k) for _, im_k in pairs]  # (global N, C)
        loss, correct = 0.0, []
        query_encoder, _ = self.view_encoders
        with tf.GradientTape() as tape:
            for (im_q, _), k in zip(pairs, keys, strict=True):
                q = unit_rows(encode(query_encoder, im_q))  # (N, C)
                of_queries = self._contrast(q, distribution.replica_slice(k))
                loss += ops.mean(of_queries[0])
                correct.append(of_queries[1])
            scaled_loss = self.scale_loss(loss)
        self.apply_gradients(tape, scaled_loss)
        self.queue.enqueue(ops.concatenate(keys[::-1]))  # the notebook's order
        return self.step_logs(loss, ops.concatenate(correct))

    def losses_of_views(self, im_1, im_2):
        """Those against the queue as it is, by the moving statistics."""
        losses, correct = 0.0, []
        query_encoder, key_encoder = self.view_encoders
        for im_q, im_k in self._pairs(im_1, im_2):
            q = unit_rows(query_encoder(im_q, training=False))
            k = unit_rows(key_encoder(im_k, training=False))
            of_queries = self._contrast(q, k)
            losses += of_queries[0]
            correct.append(of_queries[1])
        return losses, ops.concatenate(correct)

    def _pairs(self, im_1, im_2):
        """The views that serve as query and as key; both ways if symmetric."""
        return [(im_1, im_2)] + [(im_2, im_1)] * self.symmetric

    def _contrast(self, q, k):
        """Losses and accuracy of queries (N, C) with their keys (N, C)."""
        temperature = tf.convert_to_tensor(self._temperature_variable)
        return fused_info_nce(q, k, self.queue.keys, temperature)

    def _encode_keys(self, im_k):
        """The keys of all replicas, (global N, C), in the images' order."""
        across = self.shuffle == "replicas"
        if self.shuffle != "none":
            im_k, order = shuffle_bn.shuffle(im_k, self._shuffle_seed, across)
        k = unit_rows(encode(self.view_encoders[1], im_k))
        if across:
            return shuffle_bn.unshuffle(distribution.all_gather(k), order)
        if self.shuffle == "split":
            k = shuffle_bn.unshuffle(k, order)
        return distribution.all_gather(k)

    def get_config(self):
        """All arguments by name."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "encoder": serialize(self.query_encoder),
            "augmenter": serialize(self.augmenter),
            "queue_size": self.queue.size,
            "momentum": serialize(self.momentum),
            "temperature": self.temperature,
            "symmetric": self.symmetric,
            "shuffle": self.shuffle,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Builds the model again, with fresh weights."""
        from moco_keras import augmentations  # noqa: F401 (registers layers)

        nested = ("encoder", "augmenter", "momentum")
        loaded = {
            name: keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
            for name in nested
        }
        return cls(**{**config, **loaded})
