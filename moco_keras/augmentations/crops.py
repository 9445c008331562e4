"""Layers that cut a square from each image: at random, or the center."""

import functools
import math

import tensorflow as tf
from keras import ops

from moco_keras import arguments, random
from moco_keras.augmentations import image_ops
from moco_keras.augmentations.base import Augmentation, between, register


class _Crop(Augmentation):
    """Base of those that need only a part of each image as float32."""

    def convert(self, values):
        return ops.convert_to_tensor(values)


@register
class RandomResizedCrop(_Crop):
    """Cuts a random rectangle from each image and resizes it to a square.

    The area is uniform in `scale` and the logarithm of width over height in
    `ratio`. Ten rectangles are tried; where none fits, the largest centered one
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
        self.scale = arguments.pair(arguments.POSITIVE_FRACTION, scale=scale)
        self.ratio = arguments.pair(arguments.POSITIVE, ratio=ratio)

    def get_random_transformation_batch(self, batch_size, images, **kwargs):
        sides = image_ops.height_and_width(images)
        key, numbers = self.next_key(batch_size)
        return _boxes(key, numbers, self.tries, *sides, self.scale, self.ratio)

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
    # In float64, because rounding to whole pixels must not depend on how a
    # compiler multiplies and adds.
    draws, height, width = (
        ops.cast(x, "float64") for x in (draws, height, width)
    )
    areas, ratios = ops.split(draws[:-2], 2)  # (tries, N)
    areas = between(*scale, areas) * height * width
    ratios = ops.exp(between(*(math.log(r) for r in ratio), ratios))
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


@register
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
        # The size of the images may be known only now.
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
