"""Layers that change color or intensity, each image in an order of its own."""

from keras import ops

from moco_keras import arguments
from moco_keras.augmentations import color_ops
from moco_keras.augmentations.base import (
    RangedAugmentation,
    between,
    check_rgb,
    register,
)

_HALF = arguments.Kind("a number in [0, 0.5]", lambda x: 0 <= x <= 0.5)


def _factors(reach, draw):
    """Around 1, and never negative: as torchvision's ColorJitter has them."""
    return between(max(0.0, 1.0 - reach), 1.0 + reach, draw)


@register
class RandomColorJitter(RangedAugmentation):
    """Changes brightness, contrast, saturation and hue, in random order.

    Each image has its own factors and its own order of the four operations, as
    with torchvision's ColorJitter on one image.

    Args:
        brightness, contrast, saturation: x, at least 0; factors are uniform
            in [max(0, 1 - x), 1 + x].
        hue: greatest shift of the hue, in turns, in [0, 0.5].
        rate: probability that an image is changed at all.
        value_range: see `RandomIntensityJitter`.
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
            "places": _places(draws[5:]),
        }

    def augment_images(self, images, transformations, **kwargs):
        check_rgb(self, images)
        return color_ops.jitter(
            images, bounds=self.bounds, **_places_where_applied(transformations)
        )

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
class RandomIntensityJitter(RangedAugmentation):
    """Changes brightness, contrast and gamma, in random order.

    For images of any number of channels. Each image has its own factors and its
    own order; all of its channels share them, or each has its own.

    Args:
        brightness, contrast: x, at least 0; factors are uniform in
            [max(0, 1 - x), 1 + x]. Contrast is that with the channel's mean.
        gamma: likewise, of an exponent of the pixels, where the range is
            [0, 1].
        rate: probability that an image, or a channel, is changed at all.
        per_channel: whether each channel is changed as an image of its own.
        value_range: the darkest and the brightest value of the pixels, as in
            `build_encoder`; None means [0, 255].
    """

    def __init__(
        self,
        brightness=0.4,
        contrast=0.4,
        gamma=0.2,
        rate=0.8,
        per_channel=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        kind = arguments.NOT_NEGATIVE
        self.brightness = arguments.real(kind, brightness=brightness)
        self.contrast = arguments.real(kind, contrast=contrast)
        self.gamma = arguments.real(kind, gamma=gamma)
        self.rate = arguments.real(arguments.FRACTION, rate=rate)
        self.per_channel = bool(per_channel)

    def get_random_transformation_batch(self, batch_size, images, **kwargs):
        copies = images.shape[-1] if self.per_channel else 1
        draws = self.draw(batch_size, 7 * copies)
        # Of each image one channel after another: (7, N * copies).
        draws = ops.reshape(draws, (copies, 7, -1))
        draws = ops.reshape(ops.transpose(draws, (1, 2, 0)), (7, -1))
        apply, brightness, contrast, gamma = ops.unstack(draws[:4])
        return {
            "apply": apply < self.rate,
            "brightness": _factors(self.brightness, brightness),
            "contrast": _factors(self.contrast, contrast),
            "gamma": _factors(self.gamma, gamma),
            "places": _places(draws[4:]),
        }

    def augment_images(self, images, transformations, **kwargs):
        draws = _places_where_applied(transformations)
        shape = ops.shape(images)
        if self.per_channel:
            images = ops.transpose(images, (0, 3, 1, 2))
            images = ops.reshape(images, (-1, *shape[1:3], 1))
        images = color_ops.intensity_jitter(images, bounds=self.bounds, **draws)
        if self.per_channel:
            images = ops.reshape(images, (-1, shape[3], *shape[1:3]))
            images = ops.transpose(images, (0, 2, 3, 1))
        return images

    def get_config(self):
        own = {
            "brightness": self.brightness,
            "contrast": self.contrast,
            "gamma": self.gamma,
            "rate": self.rate,
            "per_channel": self.per_channel,
        }
        return {**super().get_config(), **own}


def _places(draws):
    """A random order of operations for each image, int (N, operations).

    The ranks of random numbers are a random order. Column i is the place of
    operation i, in the order of the arguments.
    """
    return ops.argsort(ops.transpose(draws), axis=1)


def _places_where_applied(transformations):
    """In an image that stays as it is, no operation has a place."""
    draws = dict(transformations)
    apply = draws.pop("apply")
    draws["places"] = ops.where(apply[:, None], draws["places"], -1)
    return draws
