"""MoCo v3, a method of the same kind, on what the package shares."""

import keras
import tensorflow as tf
from keras import ops

from moco_keras import augmentations, distribution
from moco_keras.data.views import augment
from moco_keras.training.base import PretrainingModel
from moco_keras.training.two_encoders import unit_rows


@keras.saving.register_keras_serializable(package="moco_v3")
class TwoAugmenters(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = augmentations.moco_v1(8, min_area=0.5)
        self.second = augmentations.cifar(8, min_area=0.5)


@keras.saving.register_keras_serializable(package="moco_v3")
class MoCoV3(PretrainingModel):
    """Keys of the batch instead of a queue; a predictor; two augmenters.

    Reference:
        Algorithm 1 of [Chen et al., 2021](https://arxiv.org/abs/2104.02057).
    """

    def __init__(self, encoder, predictor, temperature=0.5, **kwargs):
        super().__init__(encoder, TwoAugmenters(), momentum=0.9, **kwargs)
        self.predictor, self.temperature = predictor, temperature
        self.add_state()

    @property
    def trained_models(self):
        return [self.query_encoder, self.predictor]

    def augment_twice(self, images):
        first, second = self.augmenter.first, self.augmenter.second
        return augment(first, images), augment(second, images)

    def traced_settings(self):
        return *super().traced_settings(), self.temperature

    def train_step(self, data):
        views = self.training_views(data)
        keys = [distribution.all_gather(self.keys_of(x, True)) for x in views]
        own = distribution.replica_slice(tf.range(tf.shape(keys[0])[0]))
        with tf.GradientTape() as tape:
            losses, correct = self.compared(views, keys, own, training=True)
            loss = ops.mean(losses)
            scaled_loss = self.scale_loss(loss)
        self.apply_gradients(tape, scaled_loss)
        return self.step_logs(loss, correct)

    def losses_of_views(self, im_1, im_2):
        views = im_1, im_2
        keys = [self.keys_of(x, False) for x in views]
        own = tf.range(tf.shape(im_1)[0])
        return self.compared(views, keys, own, training=False)

    def keys_of(self, images, training):
        return unit_rows(self.view_encoders[1](images, training=training))

    def compared(self, views, keys, own, training):
        """Losses and whether they are right; `own` are the rows of the keys."""
        losses, correct = 0.0, []
        for images, k in zip(views, keys[::-1], strict=True):
            q = self.view_encoders[0](images, training=training)
            q = unit_rows(self.predictor(q, training=training))
            logits = q @ ops.transpose(k) / self.temperature
            losses += keras.losses.sparse_categorical_crossentropy(
                own, logits, from_logits=True
            )
            correct.append(tf.argmax(logits, 1, "int32") == own)
        return losses, ops.cast(ops.concatenate(correct), "float32")

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "encoder": serialize(self.query_encoder),
            "predictor": serialize(self.predictor),
            "temperature": self.temperature,
        }

    @classmethod
    def from_config(cls, config):
        load = keras.saving.deserialize_keras_object
        models = {x: load(config[x]) for x in ("encoder", "predictor")}
        return cls(**{**config, **models})
