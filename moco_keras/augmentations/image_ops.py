"""Flip, turn, crop and blur of batches of images, each with its own parameters.

Tensors in, tensors out, of any number of channels. They mean what torchvision's
mean.
"""

import functools
import math

import tensorflow as tf
from keras import ops

from moco_keras.augmentations.compiling import apply_where, jit_compiled


@apply_where
def horizontal_flip(images):
    """Mirrors images left to right."""
    return ops.flip(images, axis=2)


def turn(images, quarters):
    """Turns each image by right angles, counterclockwise.

    Args:
        images: (N, S, S, C).
        quarters: int (N,), how many, from 0 to 3.
    """
    quarters = quarters[:, None, None, None]
    half = ops.where(quarters >= 2, ops.flip(images, axis=(1, 2)), images)
    quarter = ops.flip(ops.transpose(half, (0, 2, 1, 3)), axis=1)
    return ops.where(quarters % 2 == 1, quarter, half)


def crop_and_resize(images, sides, top, left, height, width):
    """Cuts a rectangle from each image and resizes it to one size.

    Args:
        images: uint8, uint16, int16 or float32 (N, H, W, C).
        sides: height and width of the result, in pixels.
        top, left, height, width: float32 (N,), the rectangles, in pixels.

    Returns:
        float32 (N, *sides, C): bilinear, with the triangle filter of PIL where
        it shrinks.
    """
    if images.shape[0] == 1 and None in images.shape[1:3]:
        return _crop_and_resize_one(
            images, sides, top[0], left[0], height[0], width[0]
        )
    images = ops.cast(images, "float32")
    in_height, in_width = height_and_width(images)
    rows = _triangle_weights(top, height, in_height, sides[0])
    columns = _triangle_weights(left, width, in_width, sides[1])
    result = _resize_separably(images, rows, columns)
    return ops.reshape(result, (-1, *sides, images.shape[-1]))


def _crop_and_resize_one(images, sides, *box):
    # TensorFlow's kernel for one image reads only the pixels that matter, and
    # reading is most of a photograph's cost. It has none for a batch of boxes.
    top, left, height, width = box
    channels = images.shape[-1]
    first = ops.cast(ops.floor([top, left]), "int32")
    end = ops.cast(ops.ceil([top + height, left + width]), "int32")
    image = images[0, first[0] : end[0], first[1] : end[1]]

    def resize(pixels, start, length, side):
        """Resizes the first axis of (H, W, C)."""
        scale = side / length
        # As if of one column: the kernel sums rows with the CPU's vector
        # instructions and columns without.
        rows = ops.reshape(pixels, (1, ops.shape(pixels)[0], 1, -1))
        rows = tf.raw_ops.ScaleAndTranslate(
            images=rows,
            size=[side, 1],
            scale=[scale, 1.0],
            translation=[-start * scale, 0.0],
            kernel_type="triangle",
            antialias=True,
        )
        return ops.reshape(rows, (side, -1, channels))

    image = resize(image, top - ops.floor(top), height, sides[0])
    image = ops.transpose(image, (1, 0, 2))
    image = resize(image, left - ops.floor(left), width, sides[1])
    image = ops.transpose(image, (1, 0, 2))
    return ops.reshape(image, (1, *sides, channels))  # is known then


def gaussian_blur(images, apply, sigma, max_sigma):
    """Blurs images, repeating their edge pixels outwards.

    Args:
        images: float32 (N, H, W, C).
        apply: bool (N,), which images are blurred.
        sigma: float32 (N,), standard deviations in pixels.
        max_sigma: bound of `sigma`; the kernel reaches three times as far.

    Returns:
        float32 (N, H, W, C).
    """
    radius = math.ceil(3 * max_sigma)
    offset = ops.arange(-radius, radius + 1, dtype="float32")
    weights = ops.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    weights = weights / ops.sum(weights, axis=1, keepdims=True)
    alone = ops.cast(offset == 0, "float32")
    weights = ops.where(apply[:, None], weights, alone)  # (N, taps)

    def blur():
        half = _weighted_neighbors(images, weights, axis=1)
        return _weighted_neighbors(half, weights, axis=2)

    if images.shape[0] != 1:
        return blur()
    return ops.cond(apply[0], blur, lambda: images)


def _weighted_neighbors(images, weights, axis):
    """Sums the neighbors of each pixel along an axis, weights (N, taps)."""
    reach = weights.shape[1] // 2
    edges = (0, ops.shape(images)[axis] - 1)
    before, after = (
        ops.take(images, ops.full((reach,), edge, "int32"), axis=axis)
        for edge in edges
    )
    # Padded before the compiled kernel, which would pad once for every tap.
    padded = ops.concatenate([before, images, after], axis=axis)
    return _weighted_windows(images, padded, weights, axis)


@jit_compiled
def _weighted_windows(images, padded, weights, axis):
    n, height, width, channels = ops.shape(images)
    # Rows as long as can be suit the CPU's vector instructions.
    rows = (n, height, width * channels)
    step, length = channels, width * channels
    if axis == 1:
        rows, step, length = (n, 1, -1), length, height * length
    padded = ops.reshape(padded, (*rows[:2], -1))
    total = sum(
        weights[:, i, None, None] * padded[..., i * step : i * step + length]
        for i in range(weights.shape[1])
    )
    return ops.reshape(total, ops.shape(images))


def height_and_width(images):
    """Sides of the images, two float32 scalars."""
    shape = ops.shape(images)
    return (ops.cast(side, "float32") for side in shape[1:3])


@functools.partial(tf.function, jit_compile=True)
def _triangle_weights(start, length, in_size, out_size):
    """Weights (N, out, in) that resize [start, start + length) of an axis."""
    start, length = start[:, None, None], length[:, None, None]
    scale = length / out_size
    place = ops.arange(out_size, dtype="float32") + 0.5  # (out,)
    pixel = ops.arange(in_size, dtype="float32") + 0.5  # (in,)
    center = start + scale * place[:, None]  # (N, out, 1)
    distance = ops.abs(pixel - center) / ops.maximum(scale, 1.0)
    weights = ops.maximum(1.0 - distance, 0.0)  # (N, out, in)
    # Pixels of which any part is in the rectangle: (N, 1, in).
    inside = (pixel + 0.5 > start) & (pixel - 0.5 < start + length)
    weights = ops.where(inside, weights, 0.0)
    return weights / ops.sum(weights, axis=2, keepdims=True)


def _resize_separably(images, rows, columns):
    """Multiplies rows (N, h, H) and columns (N, w, W) into (N, H, W, C)."""

    def along_rows(images, weights):
        n, _, width, channels = ops.shape(images)
        flat = ops.reshape(images, (n, -1, width * channels))
        flat = ops.matmul(weights, flat)
        return ops.reshape(flat, (n, -1, width, channels))

    def transposed(images):
        return ops.transpose(images, (0, 2, 1, 3))

    images = along_rows(images, rows)
    return transposed(along_rows(transposed(images), columns))
