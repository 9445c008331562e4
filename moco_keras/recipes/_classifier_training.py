"""Training one classifier many times, on few images each time."""

import math

import keras
import numpy as np
import tensorflow as tf

from moco_keras import augmentations, optimizers, random
from moco_keras.callbacks import StopOnNaN
from moco_keras.data import views
from moco_keras.models import classifier

_BATCH_SIZE = 64  # small sets are repeated to fill it
_PASSES = 20  # over the images, at least
_L2 = 5e-4


def seed_random_layers(model, seed):
    """Sets what a model's random layers draw, as those that drop units do."""
    for i, state in enumerate(views.random_states(model)):
        key = random.key(seed, "views", i)
        state.assign(tf.cast(key, state.dtype))


class Trainer:
    """Trains a classifier on random crops of some images, from given weights.

    Its step is traced once for each number of steps.

    Args:
        encoder: as in `build_classifier`.
        num_classes: as in `build_classifier`.
        steps: in each training run, or as many as 20 passes have.
        learning_rate: at first; it falls by half a cosine.
        head_multiplier: what that is multiplied by for the linear layer.
        min_area: smallest part of an image that a crop shows.
    """

    def __init__(
        self,
        encoder,
        num_classes,
        *,
        steps,
        learning_rate,
        head_multiplier,
        min_area=0.3,
    ):
        self.model = classifier.build_classifier(encoder, num_classes)
        self._least_steps, self._learning_rate = steps, learning_rate
        self._head_multiplier, self._min_area = head_multiplier, min_area
        self._steps = None  # that it is compiled for
        self._trained = self.model.get_weights()
        size = self.model.input_shape[1:3]
        augmenter = augmentations.crop_and_flip(size, min_area)
        self._of_views = keras.Sequential(
            [keras.Input(self.model.input_shape[1:]), augmenter, self.model]
        )

    def num_steps(self, num_images):
        """Steps of a training run on so many images."""
        return max(
            self._least_steps, math.ceil(_PASSES * num_images / _BATCH_SIZE)
        )

    @property
    def about(self):
        """What decides on the result, beside images, weights and seed."""
        return {
            "least_steps": self._least_steps,
            "passes": _PASSES,
            "batch_size": _BATCH_SIZE,
            "learning_rate": self._learning_rate,
            "head_multiplier": self._head_multiplier,
            "l2": _L2,
            "min_area": self._min_area,
        }

    def untrained(self, seed):
        """New weights of the same network, drawn as its layers draw them."""
        keras.utils.set_random_seed(seed)
        return keras.models.clone_model(self.model).get_weights()

    def trained(self, seed):
        """Those of the encoder, and of a new linear layer."""
        kernel, bias = self.untrained(seed)[-2:]
        return [*self._trained[:-2], kernel, bias]

    def accuracy(self, weights, images, labels, test, seed, on_step):
        """Trains, and returns the accuracy on test images.

        Args:
            weights: to begin with, such as `trained(seed)`.
            images, labels: (N, S, S, C) and int (N,), to train on.
            test: `tf.data.Dataset` of batches (images, labels), to classify.
            seed: of the order, the crops and what is dropped.
            on_step: function without arguments, called after each step.

        Raises:
            FloatingPointError: if the training run diverges.
        """
        steps = self.num_steps(len(images))
        if steps != self._steps:
            self._compile(steps)
        self.model.set_weights(weights)
        seed_random_layers(self._of_views, seed)
        for variable in self._of_views.optimizer.variables:
            variable.assign(tf.zeros_like(variable))
        self._of_views.fit(
            self._batches(images, labels, seed),
            steps_per_epoch=steps,
            callbacks=[
                StopOnNaN(),
                keras.callbacks.LambdaCallback(
                    on_train_batch_end=lambda batch, logs: on_step()
                ),
            ],
            shuffle=False,  # it is shuffled
            verbose=0,
        )
        return self._accuracy_on(test)

    def _compile(self, steps):
        self._steps = steps
        rate = keras.optimizers.schedules.CosineDecay(
            self._learning_rate, steps
        )
        self._of_views.compile(
            optimizers.SGD(
                rate,
                momentum=0.9,
                l2=_L2,
                multipliers={classifier.HEAD: self._head_multiplier},
            ),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            # One traced step for all, which XLA would compile for minutes.
            jit_compile=False,
        )

    def _batches(self, images, labels, seed):
        """Batches of images with labels, each pass in a new order."""
        rng = np.random.default_rng(seed)
        needed = self._steps * _BATCH_SIZE
        passes = -(-needed // len(images))
        rows = np.concatenate(
            [rng.permutation(len(images)) for _ in range(passes)]
        )
        images, labels = tf.constant(images), tf.constant(labels)
        return (
            tf.data.Dataset.from_tensor_slices(rows[:needed])
            .batch(_BATCH_SIZE)
            .map(
                lambda some: (tf.gather(images, some), tf.gather(labels, some))
            )
            .prefetch(2)
        )

    def _accuracy_on(self, batches):
        """Share of images that the model classifies right."""
        right = [
            np.argmax(self.model.predict_on_batch(images), axis=1) == labels
            for images, labels in batches
        ]
        return float(np.mean(np.concatenate(right)))
