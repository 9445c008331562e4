"""The base of random layers: seeds, precision, and what Keras asks of layers.

keras-cv gives the base class. Its own random layers draw from a TensorFlow
generator that neither `keras.utils.set_random_seed` nor a saved model governs,
and its jitter and blur differ from torchvision's, so the layers are ours.
"""

import keras
import keras_cv
from keras import ops

from moco_keras import arguments, distribution, keras_private, random


def register(layer):
    """Registers a class under the name that saved files know it by."""
    return keras.saving.register_keras_serializable(package="moco_keras")(layer)


class Augmentation(
    keras_private.ConvertsInputs,
    keras_cv.layers.VectorizedBaseImageAugmentationLayer,
):
    """Base: float32 whatever the policy, random numbers that Keras seeds."""

    def __init__(self, seed=None, **kwargs):
        # Without a seed keras-cv asks for TensorFlow's global generator, which
        # deterministic operations forbid. Nothing draws from what it makes.
        super().__init__(seed=1, **{"dtype": "float32", **kwargs})
        self.seed = arguments.seed(seed)
        self.generator = keras.random.SeedGenerator(self.seed)

    def convert(self, values):
        # A policy of half precision would round the pixels.
        return ops.cast(values, "float32")

    def compute_output_shape(self, input_shape):
        return self.compute_output_spec(keras.KerasTensor(input_shape)).shape

    def compute_output_spec(self, *args, **kwargs):
        # By tracing. A layer would give the policy's dtype to that shape.
        return keras.Operation.compute_output_spec(self, *args, **kwargs)

    def draw(self, batch_size, count):
        """Draws float32 (count, N), uniform in [0, 1).

        All at once: for a single image drawing costs more than all else.
        """
        key, numbers = self.next_key(batch_size)
        return random.uniform(key, count, numbers)

    def next_key(self, batch_size):
        """A new key, and the numbers of the replica's images in the batch."""
        batch_size = batch_size * distribution.num_replicas()
        numbers = distribution.replica_slice(ops.arange(batch_size))
        return self.generator.next(), numbers

    def bernoulli(self, batch_size):
        """Draws bool (N,), true with probability `rate`."""
        return self.draw(batch_size, 1)[0] < self.rate

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


class RangedAugmentation(Augmentation):
    """Base of those that depend on which values are dark and bright.

    Args:
        value_range: the darkest and the brightest value of the pixels, as in
            `build_encoder`; None means [0, 255].
    """

    def __init__(self, value_range=None, **kwargs):
        super().__init__(**kwargs)
        if value_range is not None:
            value_range = arguments.value_range(value_range)
        self.value_range = value_range

    @property
    def bounds(self):
        """The darkest and the brightest value."""
        return self.value_range or (0.0, 255.0)

    def get_config(self):
        return {**super().get_config(), "value_range": self.value_range}


def check_rgb(layer, images):
    """Refuses images of other than three channels, which have no color.

    Raises:
        ValueError: naming the layer, and what to use instead.
    """
    if images.shape[-1] != 3:
        raise ValueError(
            f"`{type(layer).__name__}` must have images of three channels, "
            "red, green and blue. Received: "
            f"{images.shape[-1]} channels, shape={tuple(images.shape)}. Use an "
            "augmentation without color: `augmentations.gray` for one channel, "
            "`augmentations.multichannel` for several."
        )


def between(low, high, draw):
    """Brings draws, uniform in [0, 1), to the range from `low` to `high`."""
    return low + (high - low) * draw
