"""Random views of images: batched layers, parameters drawn for each image.

Every layer takes images (N, H, W, C) or one image (H, W, C), and returns
float32 pixels of the same range. The same layers run inside the model and in a
`tf.data` pipeline. Operations mean what torchvision's mean. None normalizes,
because the encoder does (see `build_encoder`).
"""

from keras import ops

from moco_keras import arguments
from moco_keras.augmentations import color_ops, image_ops
from moco_keras.augmentations.base import (
    Augmentation,
    RangedAugmentation,
    between,
    check_rgb,
    register,
)


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
        check_rgb(self, images)
        return color_ops.grayscale(images, transformations)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


@register
class RandomChannelDrop(RangedAugmentation):
    """Makes each channel dark with probability `rate`, but never all of them.

    Args:
        rate: probability of each channel of each image.
        value_range: see `RandomIntensityJitter`.
    """

    def __init__(self, rate=0.1, **kwargs):
        super().__init__(**kwargs)
        self.rate = arguments.real(arguments.FRACTION, rate=rate)

    def get_random_transformation_batch(self, batch_size, images, **kwargs):
        draws = ops.transpose(self.draw(batch_size, images.shape[-1]))
        last = ops.max(draws, axis=1, keepdims=True)  # which stays
        return (draws < self.rate) & (draws < last)

    def augment_images(self, images, transformations, **kwargs):
        return color_ops.drop_channels(images, transformations, self.bounds[0])

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


@register
class RandomRightAngle(Augmentation):
    """Turns each image by 0, 90, 180 or 270 degrees.

    For images without an up, such as those of microscopes and satellites, and
    as many pixels high as wide.
    """

    def get_random_transformation_batch(self, batch_size, **kwargs):
        quarters = ops.floor(4 * self.draw(batch_size, 1)[0])
        return ops.cast(quarters, "int32")

    def augment_images(self, images, transformations, **kwargs):
        height, width = images.shape[1:3]
        if height != width:
            raise ValueError(
                "`RandomRightAngle` must have images as high as wide. "
                f"Received: {height} by {width} pixels. Cut squares first."
            )
        return image_ops.turn(images, transformations)


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
class RandomSolarize(RangedAugmentation):
    """Inverts the bright values of each image with probability `rate`.

    Args:
        rate: probability that an image is changed.
        threshold: least value that is inverted; None means 128 where the range
            is [0, 255], and the like in another.
        value_range: see `RandomIntensityJitter`.
    """

    def __init__(self, rate=0.2, threshold=None, **kwargs):
        super().__init__(**kwargs)
        self.rate = arguments.real(arguments.FRACTION, rate=rate)
        if threshold is None:
            low, high = self.bounds
            threshold = low + 128 * (high - low) / 255
        kind = arguments.NOT_NEGATIVE
        if self.value_range is not None:  # which may have negative pixels
            kind = arguments.FINITE
        self.threshold = arguments.real(kind, threshold=threshold)

    def get_random_transformation_batch(self, batch_size, **kwargs):
        return self.bernoulli(batch_size)

    def augment_images(self, images, transformations, **kwargs):
        return color_ops.solarize(
            images, transformations, self.threshold, self.bounds
        )

    def get_config(self):
        own = {"rate": self.rate, "threshold": self.threshold}
        return {**super().get_config(), **own}
