"""A query encoder, and a key encoder of the same kind that follows it."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from moco_keras import (
    distribution,
    keras_private,
    momentum,
    pixel_format,
    random,
)
from moco_keras.data import checks
from moco_keras.data.views import augment, random_states
from moco_keras.models import derived, encoders, model_state
from moco_keras.training import encoder_checks

_DTYPE = "image_dtype"  # in files


class TwoEncoders(keras.Model):
    """What a model of two encoders holds, and what it computes of images.

    A subclass sets its own parts in its constructor, and then calls
    `add_state`.

    Args:
        encoder: functional `keras.Model` from images, float (N, H, W, C), to
            projections, (N, D). It becomes the query encoder, and a copy of it
            the key encoder.
        augmenter: layer or callable that cuts random views of images, or None.
        view_size: side of the views in pixels, or their height and width, where
            it is not that of the encoder's images.
        kwargs: as in `keras.Model`.

    Attributes:
        steps: int64 scalar, the steps that were taken.
        image_dtype: type of the images that `fit` was last given, such as
            "uint8"; None before, and for ready views.
        statistics_differ: whether replicas may hold different statistics.

    Raises:
        ValueError: if the encoder does not return one vector an image, or
            cannot take views of another size than its images.
    """

    def __init__(self, encoder, augmenter=None, *, view_size=None, **kwargs):
        encoders.check_defaults()
        super().__init__(**kwargs)
        self.autocast = False  # a policy of half precision would round images
        encoder_checks.check_encoder(encoder)
        self.query_encoder = encoder
        # As trainable as the query encoder, on purpose: Keras runs a frozen
        # batch norm in inference mode, and keys must be normalized as queries
        # are. Gradients never reach it, since `trainable_variables` leaves it
        # out.
        self.key_encoder = keras.models.clone_model(encoder)
        model_state.copy_state(encoder, self.key_encoder)
        encoder_checks.check_ranges(augmenter, encoder)
        self._view_size = view_size
        pair = [self.for_views(x) for x in (encoder, self.key_encoder)]
        self._of_views = lambda: pair  # Keras would track and save a list
        self.augmenter = augmenter
        self.image_dtype = None

    def add_state(self):
        """Adds the variables of every method, after those of a subclass."""
        from moco_keras import augmentations  # slow to import

        self._shuffle_seed = keras.random.SeedGenerator()
        # The optimizer's count leaves out what loss scaling skips.
        self.steps = self.add_weight(
            shape=(), dtype="int64", trainable=False, name="steps"
        )
        self._replica_statistics = distribution.ReplicaValues(
            self.statistics, self.distribute_strategy
        )
        self.statistics_differ = False
        sides = self.query_encoder.input_shape[1:3]
        self._evaluation = (
            keras.layers.Identity(dtype="float32")
            if None in sides
            else augmentations.evaluation(sides)
        )
        self.built = True

    @property
    def pixels(self):
        """What images must be, a `PixelFormat`."""
        return pixel_format.of(self.query_encoder)

    @property
    def view_size(self):
        """As it was given; None if views are as large as images."""
        return self._view_size

    @property
    def view_encoders(self):
        """The query encoder and the key encoder, for images of views' size."""
        return self._of_views()

    def for_views(self, encoder):
        """An encoder of the same layers, for images of views' size."""
        return derived.of_size(encoder, self.view_size)

    @property
    def trained_models(self):
        """Models whose weights the optimizer moves."""
        return [self.query_encoder]

    def augment_twice(self, images):
        """Two views of each image; a method may cut them differently."""
        return augment(self.augmenter, images), augment(self.augmenter, images)

    def two_views(self, data):
        """The views of a batch, as the encoders take them.

        Args:
            data: as `fit` gets it, one batch.

        Returns:
            A pair of views, float (N, H, W, C).
        """
        images = checks.unpack_images(data)
        if isinstance(images, tuple):
            im_1, im_2 = images
            checks.check_pair(im_1, im_2)
        elif self.augmenter is None:
            raise ValueError(
                f"`{type(self).__name__}` needs an `augmenter` to train on "
                "images. Give it one, or pass `fit` ready pairs of views, "
                "`fit((im_q, im_k))`."
            )
        else:
            checks.check_images(images, pixels=self.pixels)
            im_1, im_2 = self.augment_twice(images)
        checks.check_views(im_1, im_2, self.view_encoders[0])
        return im_1, im_2

    def fixed_views(self, data, number):
        """Two views that are the same every time, if a Keras layer cuts them.

        Args:
            data: as in `two_views`.
            number: int scalar, on which the views depend, such as that of the
                batch.

        Returns:
            A pair of views, float (N, H, W, C).
        """
        states = [
            (v, random.fold_in(random.key(0, "evaluation", i), number))
            for i, v in enumerate(random_states(self.augmenter))
        ]
        with keras.StatelessScope(states):
            return self.two_views(data)

    def call(self, images, training=False):
        """Projects images (N, H, W, C): float32 (N, D), L2-normalized."""
        images = checks.unpack_images(images)
        checks.check_images(images, pixels=self.pixels)
        images = self._evaluation(images)
        return unit_rows(self.query_encoder(images, training=training))

    def predict(self, x, batch_size=None, verbose="auto", steps=None, **kwargs):
        """Projects as `call` does; arguments as in `keras.Model.predict`.

        What the projections are made of, the features, come from
        `features.extract(model, images)`.
        """
        self.average_statistics()  # after an epoch that was interrupted
        kwargs |= {"verbose": verbose, "steps": steps}
        predict = super().predict
        if not isinstance(x, (np.ndarray, tf.Tensor)) or steps is not None:
            return predict(x, batch_size=batch_size, **kwargs)
        checks.check_images(x, pixels=self.pixels)  # their values are known
        return distribution.predict(
            lambda x, size: predict(x, batch_size=size, **kwargs),
            np.asarray(x),
            batch_size or 32,
            self.distribute_strategy,
        )

    def export(self, filepath, format="tf_saved_model", **kwargs):
        """Writes a SavedModel that projects as `predict` does.

        Its `serve` takes images of the type that the model was trained on, and
        returns what the loss compares, float32 (N, D), L2-normalized. For
        features, image files, versions for a server, and other runtimes there
        is `export_encoder`.

        Args:
            filepath: folder to write.
            format: "tf_saved_model".
            kwargs: as in `keras.Model.export`.

        Raises:
            ValueError: if it is another format.
        """
        if format != "tf_saved_model":
            raise ValueError(
                '`format` must be "tf_saved_model". Received: '
                f"format={format!r}. `export_encoder(model, PATH, format=...)` "
                "writes encoders for ONNX Runtime and LiteRT."
            )
        self.average_statistics()
        resized = not isinstance(self._evaluation, keras.layers.Identity)
        *size, channels = self.query_encoder.input_shape[1:]
        size = (None, None) if resized else size
        dtype = self.image_dtype or self.pixels.dtypes[-1]
        images = keras.Input((*size, channels), dtype=dtype, name="images")
        # Without the key encoder and the queue.
        project = keras.Model(images, self.call(images))
        project.export(filepath, format, **kwargs)

    @property
    def statistics(self):
        """What replicas may hold differently: moving means and variances.

        All weights of the trained models and of the key encoder that are
        float32 and not parameters.
        """
        found = []
        for model in (*self.trained_models, self.key_encoder):
            others = {id(v) for v in momentum.parameters(model)}
            found += [
                v
                for v in model.weights
                if id(v) not in others and v.dtype == "float32"
            ]
        return found

    def average_statistics(self):
        """Gives all replicas the mean of their batch norms' moving statistics.

        Each replica's follow its own batches. `fit` calls it after every epoch,
        before other callbacks evaluate or save. `save`, `predict`, `export` and
        `export_encoder` call it where an epoch was interrupted; many workers
        must then do so together.
        """
        if not self.statistics_differ:
            return  # so that the chief may save alone
        self.statistics_differ = False
        self._replica_statistics.average()

    @property
    def trainable_variables(self):
        """Those of `trained_models`: what the optimizer moves."""
        models = self.trained_models
        return [v for model in models for v in model.trainable_variables]

    @property
    def trainable_weights(self):
        """The same as `trainable_variables`."""
        return self.trainable_variables

    @property
    def non_trainable_variables(self):
        """All others: the key encoder's, the queue's, statistics, states."""
        trainable = {id(v) for v in self.trainable_variables}
        return [v for v in self.variables if id(v) not in trainable]

    @property
    def non_trainable_weights(self):
        """The same, without metrics and random states."""
        trainable = {id(v) for v in self.trainable_variables}
        return [v for v in self.weights if id(v) not in trainable]

    def get_config(self):
        """The size of the views, by name; a method adds its own arguments."""
        return {**super().get_config(), "view_size": self.view_size}

    # Keras saves weights but no random states, and training could not resume
    # to the same numbers without them.
    def save_own_variables(self, store):
        """Saves steps and random states; every layer saves its own weights."""
        self.average_statistics()  # before the layers are saved
        for i, state in enumerate(self.saved_states()):
            store[str(i)] = ops.convert_to_numpy(state)
        if self.image_dtype is not None:
            store[_DTYPE] = pixel_format.DTYPES.index(self.image_dtype)

    def load_own_variables(self, store):
        """Loads the steps and the random states."""
        for i, state in enumerate(self.saved_states()):
            state.assign(store[str(i)])
        if _DTYPE in store:
            self.image_dtype = pixel_format.DTYPES[int(store[_DTYPE][()])]

    def saved_states(self):
        """The variables that Keras itself would not save."""
        return [*keras_private.random_states(self.variables), self.steps]


def unit_rows(x):
    """Vectors (N, C) at length 1, in float32 whatever the policy."""
    return ops.normalize(ops.cast(x, "float32"), axis=1)
