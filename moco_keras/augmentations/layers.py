"""Random views of images: batched layers, parameters drawn for each image.

Every layer takes pixels in [0, 255], (N, H, W, 3) or one image (H, W, 3), and
returns float32 pixels in [0, 255]. The same layers run inside the model and in
a `tf.data` pipeline. Operations mean what torchvision's mean. None normalizes,
because the encoder does (see `build_encoder`).
"""

from keras import ops

from moco_keras import arguments
from moco_keras.augmentations import color_ops, image_ops
from moco_keras.augmentations.base import Augmentation, between, register

_HALF = arguments.Kind("a number in [0, 0.5]", lambda x: 0 <= x <= 0.5)


def _factors(reach, draw):
    """Around 1, and never negative: as torchvision's ColorJitter has them."""
    return between(max(0.0, 1.0 - reach), 1.0 + reach, draw)


@register
class RandomHorizontalFlip(Augmentation):
    """Mirrors each image left to right with probability `rate`."""

    def __init__(self, rate=0.5, **kwargs):
        super().__init__(**kwargs)
        self.rate = arguments.real(arguments.FRACTION, rate=rate)

    def get_random_transformation_batch(self, batch_size, **kwargs):
        return self.bernoulli(batch_size)

    def augment_images(self, images, transformations, **kwargs):
        return image_ops.horizontal_flip(images, transformations)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


@register
class RandomGrayscale(Augmentation):
    """Takes the color from each image with probability `rate`."""

    def __init__(self, rate=0.2, **kwargs):
        super().__init__(**kwargs)
        self.rate = arguments.real(arguments.FRACTION, rate=rate)

    def get_random_transformation_batch(self, batch_size, **kwargs):
        return self.bernoulli(batch_size)

    def augment_images(self, images, transformations, **kwargs):
        return color_ops.grayscale(images, transformations)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


@register
class RandomColorJitter(Augmentation):
    """Changes brightness, contrast, saturation and hue, in random order.

    Each image has its own factors and its own order of the four operations, as
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
        self.rate = arguments.real(arguments.FRACTION, rate=rate)

    def get_random_transformation_batch(self, batch_size, **kwargs):
        draws = self.draw(batch_size, 9)
        apply, brightness, contrast, saturation, hue = ops.unstack(draws[:5])
        return {
            "apply": apply < self.rate,
            "brightness": _factors(self.brightness, brightness),
            "contrast": _factors(self.contrast, contrast),
            "saturation": _factors(self.saturation, saturation),
            "hue": between(-self.hue, self.hue, hue),
            # The ranks of random numbers are a random order. Column i is the
            # place of operation i, in the order of the arguments.
            "places": ops.argsort(ops.transpose(draws[5:]), axis=1),
        }

    def augment_images(self, images, transformations, **kwargs):
        draws = dict(transformations)
        # In an image that stays as it is, no operation has a place.
        apply = draws.pop("apply")
        draws["places"] = ops.where(apply[:, None], draws["places"], -1)
        return color_ops.jitter(images, **draws)

    def get_config(self):
        own = {
            "brightness": self.brightness,
            "contrast": self.contrast,
            "saturation": self.saturation,
            "hue": self.hue,
            "rate": self.rate,
        }
        return {**super().get_config(), **own}


@register
class RandomGaussianBlur(Augmentation):
    """Blurs each image with probability `rate`, by its own width.

    Args:
        sigma: least and greatest standard deviation, in pixels.
        rate: probability that an image is blurred.
    """

    def __init__(self, sigma=(0.1, 2.0), rate=0.5, **kwargs):
        super().__init__(**kwargs)
        self.sigma = arguments.pair(arguments.POSITIVE, sigma=sigma)
        self.rate = arguments.real(arguments.FRACTION, rate=rate)

    def get_random_transformation_batch(self, batch_size, **kwargs):
        apply, sigma = ops.unstack(self.draw(batch_size, 2))
        return {
            "apply": apply < self.rate,
            "sigma": between(*self.sigma, sigma),
        }

    def augment_images(self, images, transformations, **kwargs):
        return image_ops.gaussian_blur(
            images, max_sigma=self.sigma[1], **transformations
        )

    def get_config(self):
        own = {"sigma": self.sigma, "rate": self.rate}
        return {**super().get_config(), **own}


@register
class RandomSolarize(Augmentation):
    """Inverts the bright values of each image with probability `rate`.

    Args:
        rate: probability that an image is changed.
        threshold: least value that is inverted, of pixels in [0, 255].
    """

    def __init__(self, rate=0.2, threshold=128.0, **kwargs):
        super().__init__(**kwargs)
        self.rate = arguments.real(arguments.FRACTION, rate=rate)
        self.threshold = arguments.real(
            arguments.NOT_NEGATIVE, threshold=threshold
        )

    def get_random_transformation_batch(self, batch_size, **kwargs):
        return self.bernoulli(batch_size)

    def augment_images(self, images, transformations, **kwargs):
        return color_ops.solarize(images, transformations, self.threshold)

    def get_config(self):
        own = {"rate": self.rate, "threshold": self.threshold}
        return {**super().get_config(), **own}
