"""Random views of images: batched layers, parameters drawn for each image.

Every layer takes pixels in [0, 255], (N, H, W, 3) or one image (H, W, 3), and
returns float32 pixels in [0, 255]. The same layers run inside the model and in
a `tf.data` pipeline. Operations mean what torchvision's mean; none normalises,
for the encoder does (see `build_encoder`).

keras-cv gives the base class. Its own random layers draw from a TensorFlow
generator that neither `keras.utils.set_random_seed` nor a saved model governs,
and its jitter and blur differ from torchvision's, so the layers are ours.
"""

import functools
import math

import keras
import keras_cv
import tensorflow as tf
from keras import ops

from moco_keras import arguments, distribution, random
from moco_keras.augmentations import image_ops

_HALF = arguments.Kind("a number in [0, 0.5]", lambda x: 0 <= x <= 0.5)


class _Augmentation(keras_cv.layers.VectorizedBaseImageAugmentationLayer):
    """Base: float32 whatever the policy, random numbers that Keras seeds."""

    def __init__(self, seed=None, **kwargs):
        # Without a seed keras-cv asks for TensorFlow's global generator, which
        # deterministic operations forbid. Nothing draws from what it makes.
        super().__init__(seed=1, **{"dtype": "float32", **kwargs})
        self.seed = arguments.seed(seed)
        self.generator = keras.random.SeedGenerator(self.seed)

    def _ensure_inputs_are_compute_dtype(self, inputs):
        # A policy of half precision would round the pixels.
        return keras.tree.map_structure(
            lambda x: ops.cast(x, "float32"), inputs
        )

    def compute_output_shape(self, input_shape):
        return self.compute_output_spec(keras.KerasTensor(input_shape)).shape

    def compute_output_spec(self, *args, **kwargs):
        # By tracing. A layer would give the policy's dtype to that shape.
        return keras.Operation.compute_output_spec(self, *args, **kwargs)

    def draw(self, batch_size, count):
        """Draws float32 (count, N), uniform in [0, 1).

        All at once, for drawing costs a single image more than its use.
        """
        key, numbers = self.drawn_from(batch_size)
        return random.uniform(key, count, numbers)

    def drawn_from(self, batch_size):
        """A new key, and the numbers of the replica's images in the batch."""
        batch_size = batch_size * distribution.num_replicas()
        numbers = distribution.replica_slice(ops.arange(batch_size))
        return self.generator.next(), numbers

    def chance(self, batch_size):
        """Draws bool (N,), true with probability `rate`."""
        return self.draw(batch_size, 1)[0] < self.rate

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


def _between(low, high, draw):
    return low + (high - low) * draw


def _factors(reach, draw):
    """Around 1, and never negative: as torchvision's ColorJitter has them."""
    return _between(max(0.0, 1.0 - reach), 1.0 + reach, draw)


class _Crop(_Augmentation):
    """Base of those that need only a part of each image as float32."""

    def _ensure_inputs_are_compute_dtype(self, inputs):
        return keras.tree.map_structure(ops.convert_to_tensor, inputs)


def _register(layer):
    return keras.saving.register_keras_serializable(package="moco_keras")(layer)


@_register
class RandomResizedCrop(_Crop):
    """Cuts a random rectangle from each image and resizes it to a square.

    The area is uniform in `scale` and the logarithm of width over height in
    `ratio`. Ten rectangles are tried; where none fits, the largest centred one
    of an allowed ratio is taken. Bilinear, with antialiasing where it shrinks.

    Args:
        image_size: side of the result, in pixels.
        scale: least and greatest area, as parts of the image's.
        ratio: least and greatest width over height.
    """

    tries = 10

    def __init__(
        self, image_size, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), **kwargs
    ):
        super().__init__(**kwargs)
        self.image_size = arguments.whole(image_size=image_size)
        self.scale = arguments.pair(arguments.PART, scale=scale)
        self.ratio = arguments.pair(arguments.POSITIVE, ratio=ratio)

    def get_random_transformation_batch(self, batch_size, images, **kwargs):
        sides = image_ops.height_and_width(images)
        drawn_from = self.drawn_from(batch_size)
        return _boxes(*drawn_from, self.tries, *sides, self.scale, self.ratio)

    def augment_images(self, images, transformations, **kwargs):
        return image_ops.crop_and_resize(
            images, self.image_size, **transformations
        )

    def get_config(self):
        own = {
            "image_size": self.image_size,
            "scale": self.scale,
            "ratio": self.ratio,
        }
        return {**super().get_config(), **own}


@functools.partial(tf.function, jit_compile=True)
def _boxes(key, numbers, tries, height, width, scale, ratio):
    """Rectangles of random area and ratio; see `RandomResizedCrop`."""
    draws = random.uniform(key, 2 * tries + 2, numbers)
    # In float64, for a rounding to whole pixels must not depend on how a
    # compiler multiplies and adds.
    draws, height, width = (
        ops.cast(x, "float64") for x in (draws, height, width)
    )
    areas, ratios = ops.split(draws[:-2], 2)  # (tries, N)
    areas = _between(*scale, areas) * height * width
    ratios = ops.exp(_between(*(math.log(r) for r in ratio), ratios))
    w = ops.round(ops.sqrt(areas * ratios))
    h = ops.round(ops.sqrt(areas / ratios))
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    number = ops.arange(tries)[:, None]
    first = ops.min(ops.where(fits, number, tries), axis=0)  # (N,)
    w = ops.sum(ops.where(number == first, w, 0.0), axis=0)
    h = ops.sum(ops.where(number == first, h, 0.0), axis=0)
    top = ops.floor(draws[-2] * (height - h + 1))
    left = ops.floor(draws[-1] * (width - w + 1))
    # Where no try fits.
    last_ratio = ops.clip(width / height, *ratio)
    last_w = ops.minimum(width, ops.round(height * last_ratio))
    last_h = ops.minimum(height, ops.round(width / last_ratio))
    fitted = first < tries
    box = {
        "top": ops.where(fitted, top, ops.floor((height - last_h) / 2)),
        "left": ops.where(fitted, left, ops.floor((width - last_w) / 2)),
        "height": ops.where(fitted, h, last_h),
        "width": ops.where(fitted, w, last_w),
    }
    return {name: ops.cast(x, "float32") for name, x in box.items()}


@_register
class CenterCropAndResize(_Crop):
    """See `evaluation`."""

    def __init__(self, image_size, **kwargs):
        super().__init__(**kwargs)
        self.image_size = arguments.whole(image_size=image_size)

    def augment_images(self, images, **kwargs):
        if images.shape[1:3] == (self.image_size, self.image_size):
            return ops.cast(images, "float32")
        height, width = image_ops.height_and_width(images)
        side = ops.minimum(height, width) * 7 / 8
        # Their size may be known only now.
        fit = ops.logical_and(
            height == self.image_size, width == self.image_size
        )
        side = ops.where(fit, ops.cast(self.image_size, side.dtype), side)
        batch = ops.ones((ops.shape(images)[0],))
        return image_ops.crop_and_resize(
            images,
            self.image_size,
            top=batch * (height - side) / 2,
            left=batch * (width - side) / 2,
            height=batch * side,
            width=batch * side,
        )

    def get_config(self):
        return {**super().get_config(), "image_size": self.image_size}


@_register
class RandomHorizontalFlip(_Augmentation):
    """Mirrors each image left to right with probability `rate`."""

    def __init__(self, rate=0.5, **kwargs):
        super().__init__(**kwargs)
        self.rate = arguments.real(arguments.SHARE, rate=rate)

    def get_random_transformation_batch(self, batch_size, **kwargs):
        return self.chance(batch_size)

    def augment_images(self, images, transformations, **kwargs):
        return image_ops.mirror(images, transformations)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


@_register
class RandomGrayscale(_Augmentation):
    """Takes the colour from each image with probability `rate`."""

    def __init__(self, rate=0.2, **kwargs):
        super().__init__(**kwargs)
        self.rate = arguments.real(arguments.SHARE, rate=rate)

    def get_random_transformation_batch(self, batch_size, **kwargs):
        return self.chance(batch_size)

    def augment_images(self, images, transformations, **kwargs):
        return image_ops.grayscale(images, transformations)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


@_register
class RandomColorJitter(_Augmentation):
    """Changes brightness, contrast, saturation and hue, in random order.

    Each image has factors and an order of the four operations of its own, as
    with torchvision's ColorJitter on one image.

    Args:
        brightness, contrast, saturation: x, at least 0; factors are uniform
            in [max(0, 1 - x), 1 + x].
        hue: greatest shift of the hue, in turns, in [0, 0.5].
        rate: probability that an image is changed at all.
    """

    def __init__(
        self,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        rate=0.8,
        **kwargs,
    ):
        super().__init__(**kwargs)
        kind = arguments.NOT_NEGATIVE
        self.brightness = arguments.real(kind, brightness=brightness)
        self.contrast = arguments.real(kind, contrast=contrast)
        self.saturation = arguments.real(kind, saturation=saturation)
        self.hue = arguments.real(_HALF, hue=hue)
        self.rate = arguments.real(arguments.SHARE, rate=rate)

    def get_random_transformation_batch(self, batch_size, **kwargs):
        draws = self.draw(batch_size, 9)
        apply, brightness, contrast, saturation, hue = ops.unstack(draws[:5])
        return {
            "apply": apply < self.rate,
            "brightness": _factors(self.brightness, brightness),
            "contrast": _factors(self.contrast, contrast),
            "saturation": _factors(self.saturation, saturation),
            "hue": _between(-self.hue, self.hue, hue),
            # The rank of random numbers is a random order. Column i is the
            # place of operation i, in the order of the arguments.
            "places": ops.argsort(ops.transpose(draws[5:]), axis=1),
        }

    def augment_images(self, images, transformations, **kwargs):
        draws = dict(transformations)
        # An image that is left as it is has its operations nowhere.
        apply = draws.pop("apply")
        draws["places"] = ops.where(apply[:, None], draws["places"], -1)
        return image_ops.jitter(images, **draws)

    def get_config(self):
        own = {
            "brightness": self.brightness,
            "contrast": self.contrast,
            "saturation": self.saturation,
            "hue": self.hue,
            "rate": self.rate,
        }
        return {**super().get_config(), **own}


@_register
class RandomGaussianBlur(_Augmentation):
    """Blurs each image with probability `rate`, by a width of its own.

    Args:
        sigma: least and greatest standard deviation, in pixels.
        rate: probability that an image is blurred.
    """

    def __init__(self, sigma=(0.1, 2.0), rate=0.5, **kwargs):
        super().__init__(**kwargs)
        self.sigma = arguments.pair(arguments.POSITIVE, sigma=sigma)
        self.rate = arguments.real(arguments.SHARE, rate=rate)

    def get_random_transformation_batch(self, batch_size, **kwargs):
        apply, sigma = ops.unstack(self.draw(batch_size, 2))
        return {
            "apply": apply < self.rate,
            "sigma": _between(*self.sigma, sigma),
        }

    def augment_images(self, images, transformations, **kwargs):
        return image_ops.gaussian_blur(
            images, max_sigma=self.sigma[1], **transformations
        )

    def get_config(self):
        own = {"sigma": self.sigma, "rate": self.rate}
        return {**super().get_config(), **own}


@_register
class RandomSolarize(_Augmentation):
    """Inverts the bright values of each image with probability `rate`.

    Args:
        rate: probability that an image is changed.
        threshold: least value that is inverted, of pixels in [0, 255].
    """

    def __init__(self, rate=0.2, threshold=128.0, **kwargs):
        super().__init__(**kwargs)
        self.rate = arguments.real(arguments.SHARE, rate=rate)
        self.threshold = arguments.real(
            arguments.NOT_NEGATIVE, threshold=threshold
        )

    def get_random_transformation_batch(self, batch_size, **kwargs):
        return self.chance(batch_size)

    def augment_images(self, images, transformations, **kwargs):
        return image_ops.solarize(images, transformations, self.threshold)

    def get_config(self):
        own = {"rate": self.rate, "threshold": self.threshold}
        return {**super().get_config(), **own}
