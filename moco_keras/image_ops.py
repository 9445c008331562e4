"""Operations on batches of images, each image with parameters of its own.

Tensors in, tensors out, pixels in [0, 255]. They mean what torchvision's mean.
"""

import functools
import math

import tensorflow as tf
from keras import ops


def fused(function):
    """Lets XLA make one kernel of many: several times faster on a CPU too.

    The function takes images first, and returns images of the same shape.
    """
    compiled = tf.function(function, jit_compile=True)

    @functools.wraps(function)
    def call(images, *args, **kwargs):
        # TensorFlow may have compiled it for a batch of any size before.
        result = compiled(images, *args, **kwargs)
        return tf.ensure_shape(result, images.shape)

    return call


@fused
def mirror(images, chosen):
    """Mirrors those of the images (N, H, W, 3) that bool (N,) chooses."""
    return ops.where(_per_image(chosen), ops.flip(images, axis=2), images)


@fused
def grayscale(images, chosen):
    """Takes the colour from the images (N, H, W, 3) that bool (N,) chooses."""
    gray = _luma(*(images[..., i : i + 1] for i in range(3)))
    return ops.where(_per_image(chosen), gray, images)


@fused
def solarize(images, chosen, threshold):
    """Inverts values from `threshold` on, in [0, 255], of those chosen."""
    bright = images >= threshold
    inverted = ops.where(bright, 255.0 - images, images)
    return ops.where(_per_image(chosen), inverted, images)


def _luma(red, green, blue):
    """Brightness to the eye, with torchvision's weights."""
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def crop_and_resize(images, image_size, top, left, height, width):
    """Cuts a rectangle from each image and resizes it to a square.

    Args:
        images: float32 (N, H, W, 3).
        image_size: side of the result, in pixels.
        top, left, height, width: float32 (N,), the rectangles, in pixels.

    Returns:
        float32 (N, image_size, image_size, 3): bilinear, with the triangle
        filter of PIL where it shrinks.
    """
    if images.shape[0] == 1 and None in images.shape[1:3]:
        return _crop_and_resize_one(
            images, image_size, top[0], left[0], height[0], width[0]
        )
    in_height, in_width = height_and_width(images)
    rows = _triangle_weights(top, height, in_height, image_size)
    columns = _triangle_weights(left, width, in_width, image_size)
    result = _separable(images, rows, columns)
    return ops.reshape(result, (-1, image_size, image_size, 3))


def _crop_and_resize_one(images, image_size, *box):
    # TensorFlow's kernel for one image touches only the pixels that matter,
    # which is most of a photograph's cost. It has none for a batch of boxes.
    top, left, height, width = box
    first = ops.cast(ops.floor([top, left]), "int32")
    end = ops.cast(ops.ceil([top + height, left + width]), "int32")
    images = images[:, first[0] : end[0], first[1] : end[1]]
    scale = image_size / ops.stack([height, width])
    start = ops.stack([top, left]) - ops.cast(first, "float32")
    return tf.raw_ops.ScaleAndTranslate(
        images=images,
        size=[image_size, image_size],
        scale=scale,
        translation=-start * scale,
        kernel_type="triangle",
        antialias=True,
    )


def gaussian_blur(images, apply, sigma, max_sigma):
    """Blurs images, repeating their edge pixels outwards.

    Args:
        images: float32 (N, H, W, 3).
        apply: bool (N,), which images are blurred.
        sigma: float32 (N,), standard deviations in pixels.
        max_sigma: bound of `sigma`; the kernel reaches three times as far.

    Returns:
        float32 (N, H, W, 3).
    """
    radius = math.ceil(3 * max_sigma)
    offset = ops.arange(-radius, radius + 1, dtype="float32")
    weights = ops.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    weights = weights / ops.sum(weights, axis=1, keepdims=True)
    alone = ops.cast(offset == 0, "float32")
    weights = ops.where(apply[:, None], weights, alone)  # (N, taps)

    def blur():
        # Two kernels, for of one XLA would make another that does more.
        half = _weighted_sum_of_neighbours(images, weights, axis=1)
        return _weighted_sum_of_neighbours(half, weights, axis=2)

    return ops.cond(ops.any(apply), blur, lambda: images)


@fused
def _weighted_sum_of_neighbours(images, weights, axis):
    size, radius = ops.shape(images)[axis], weights.shape[1] // 2
    index = ops.clip(ops.arange(-radius, size + radius), 0, size - 1)
    padded = ops.take(images, index, axis=axis)
    neighbours = (
        padded[:, i : i + size] if axis == 1 else padded[:, :, i : i + size]
        for i in range(2 * radius + 1)
    )
    return sum(_per_image(weights[:, i]) * x for i, x in enumerate(neighbours))


@fused
def jitter(images, brightness, contrast, saturation, hue, places):
    """Applies the four colour operations to each image, in its own order.

    Args:
        images: float32 (N, H, W, 3), pixels in [0, 255].
        brightness, contrast, saturation: float32 (N,), factors.
        hue: float32 (N,), shifts in turns.
        places: int (N, 4), the place (0 to 3) of each operation, in the order
            of the arguments; an operation at any other place is not applied.

    Returns:
        float32 (N, H, W, 3), pixels in [0, 255].
    """

    def operate(place, channels):
        """Does to each image the operation it has at a place."""
        # (N, 1, 1), to go with the channels (N, H, W).
        is_brightness, is_contrast, is_saturation, is_hue = (
            places[:, i, None, None] == place for i in range(4)
        )
        factor = ops.where(is_brightness, brightness[:, None, None], 1.0)
        factor = ops.where(is_contrast, contrast[:, None, None], factor)
        factor = ops.where(is_saturation, saturation[:, None, None], factor)
        # Brightness blends with black, contrast with the mean of the gray
        # image, saturation with the gray image itself.
        gray = _luma(*channels)
        mean = ops.mean(gray, axis=(1, 2), keepdims=True)
        other = ops.where(is_saturation, 1.0 - factor, 0.0) * gray
        other += ops.where(is_contrast, 1.0 - factor, 0.0) * mean
        return tuple(
            ops.where(is_hue, shifted, ops.clip(factor * c + other, 0.0, 255.0))
            for c, shifted in zip(
                channels,
                _shift_hue(*channels, hue[:, None, None]),
                strict=True,
            )
        )

    places = ops.cast(places, "int32")
    # A loop: of four copies XLA would make one kernel, and take hours.
    channels = tuple(images[..., i] for i in range(3))
    return ops.stack(ops.fori_loop(0, 4, operate, channels), axis=-1)


def _shift_hue(red, green, blue, turns):
    """Turns the hue of channels (N, H, W): to HSV and back at once."""
    value = ops.maximum(ops.maximum(red, green), blue)
    chroma = value - ops.minimum(ops.minimum(red, green), blue)
    scale = 1.0 / ops.where(chroma > 0, chroma, 1.0)
    sixth = ops.where(
        value == red,
        (green - blue) * scale,
        ops.where(
            value == green,
            (blue - red) * scale + 2.0,
            (red - green) * scale + 4.0,
        ),
    )

    def channel(start):
        k = sixth + 6.0 * turns + start
        k = k - 6.0 * ops.floor(k / 6.0)
        return value - chroma * ops.clip(ops.minimum(k, 4.0 - k), 0.0, 1.0)

    return channel(5.0), channel(3.0), channel(1.0)


def _per_image(values):
    return values[:, None, None, None]


def height_and_width(images):
    """Sides of the images, two float32 scalars."""
    shape = ops.shape(images)
    return (ops.cast(side, "float32") for side in shape[1:3])


def _triangle_weights(start, length, in_size, out_size):
    """Weights (N, out, in) that resize [start, start + length) of an axis."""
    start, length = start[:, None, None], length[:, None, None]
    scale = length / out_size
    place = ops.arange(out_size, dtype="float32") + 0.5  # (out,)
    pixel = ops.arange(in_size, dtype="float32") + 0.5  # (in,)
    centre = start + scale * place[:, None]  # (N, out, 1)
    distance = ops.abs(pixel - centre) / ops.maximum(scale, 1.0)
    weights = ops.maximum(1.0 - distance, 0.0)  # (N, out, in)
    # Whatever of a pixel is in the rectangle: (N, 1, in).
    inside = (pixel + 0.5 > start) & (pixel - 0.5 < start + length)
    weights = ops.where(inside, weights, 0.0)
    return weights / ops.sum(weights, axis=2, keepdims=True)


def _separable(images, rows, columns):
    """Multiplies rows (N, h, H) and columns (N, w, W) into (N, H, W, 3)."""

    def along_rows(images, weights):
        n, _, width, channels = ops.shape(images)
        flat = ops.reshape(images, (n, -1, width * channels))
        flat = ops.matmul(weights, flat)
        return ops.reshape(flat, (n, -1, width, channels))

    def swapped(images):
        return ops.transpose(images, (0, 2, 1, 3))

    images = along_rows(images, rows)
    return swapped(along_rows(swapped(images), columns))
