"""Layers that cut a part from each image: at random, or the center."""

import functools
import math

import tensorflow as tf
from keras import ops

from moco_keras import arguments, random
from moco_keras.augmentations import image_ops
from moco_keras.augmentations.base import Augmentation, between, register


class _Crop(Augmentation):
    """Base of those that need only a part of each image as float32.

    Args:
        image_size: of the result in pixels: its side, or height and width.
    """

    def __init__(self, image_size, **kwargs):
        super().__init__(**kwargs)
        self.sides = arguments.sides(image_size=image_size)

    @property
    def image_size(self):
        """The side of the result, or its height and width, in pixels."""
        height, width = self.sides
        return height if height == width else self.sides

    def get_config(self):
        return {**super().get_config(), "image_size": self.image_size}

    def convert(self, values):
        return ops.convert_to_tensor(values)


@register
class RandomResizedCrop(_Crop):
    """Cuts a random rectangle from each image and resizes it to one size.

    The area is uniform in `scale` and the logarithm of width over height in
    `ratio`. Ten rectangles are tried; where none fits, the largest centered one
    of an allowed ratio is taken. Bilinear, with antialiasing where it shrinks.

    Args:
        image_size: of the result in pixels: its side, or height and width.
        scale: least and greatest area, as parts of the image's.
        ratio: least and greatest width over height.
    """

    tries = 10

    def __init__(
        self, image_size, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), **kwargs
    ):
        super().__init__(image_size, **kwargs)
        self.scale = arguments.pair(arguments.POSITIVE_FRACTION, scale=scale)
        self.ratio = arguments.pair(arguments.POSITIVE, ratio=ratio)

    def get_random_transformation_batch(self, batch_size, images, **kwargs):
        sides = image_ops.height_and_width(images)
        key, numbers = self.next_key(batch_size)
        return _boxes(key, numbers, self.tries, *sides, self.scale, self.ratio)

    def augment_images(self, images, transformations, **kwargs):
        return image_ops.crop_and_resize(images, self.sides, **transformations)

    def get_config(self):
        own = {"scale": self.scale, "ratio": self.ratio}
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

    def augment_images(self, images, **kwargs):
        if images.shape[1:3] == self.sides:
            return ops.cast(images, "float32")
        height, width = image_ops.height_and_width(images)
        ratio = self.sides[1] / self.sides[0]
        cut_height = ops.minimum(height, width / ratio) * 7 / 8
        cut_width = cut_height * ratio
        # The size of the images may be known only now.
        fits = ops.logical_and(height == self.sides[0], width == self.sides[1])
        cut_height = ops.where(fits, height, cut_height)
        cut_width = ops.where(fits, width, cut_width)
        batch = ops.ones((ops.shape(images)[0],))
        return image_ops.crop_and_resize(
            images,
            self.sides,
            top=batch * (height - cut_height) / 2,
            left=batch * (width - cut_width) / 2,
            height=batch * cut_height,
            width=batch * cut_width,
        )
