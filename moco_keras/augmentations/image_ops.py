"""Operations on batches of images, each image with parameters of its own.

Tensors in, tensors out, pixels in [0, 255]. They mean what torchvision's mean.
"""

import functools
import math

import tensorflow as tf
from keras import ops

from moco_keras.distribution import accelerators


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


def for_chosen(function):
    """Makes (images, chosen, ...) of a fused function of (images, ...).

    Images (N, H, W, 3) that bool (N,) does not choose stay as they are. For a
    single one that is not chosen nothing is computed. In a batch some nearly
    always are, and checking would make a GPU wait.
    """

    @fused
    def select(images, chosen, *args, **kwargs):
        changed = function(images, *args, **kwargs)
        return ops.where(_per_image(chosen), changed, images)

    @functools.wraps(function)
    def call(images, chosen, *args, **kwargs):
        if images.shape[0] != 1:
            return select(images, chosen, *args, **kwargs)
        return ops.cond(
            chosen[0],
            lambda: select(images, chosen, *args, **kwargs),
            lambda: images,
        )

    return call


@for_chosen
def mirror(images):
    """Mirrors images left to right."""
    return ops.flip(images, axis=2)


@for_chosen
def grayscale(images):
    """Takes the colour from images."""
    return _luma(*(images[..., i : i + 1] for i in range(3)))


@for_chosen
def solarize(images, threshold):
    """Inverts values from `threshold` on, in [0, 255]."""
    return ops.where(images >= threshold, 255.0 - images, images)


def _luma(red, green, blue):
    """Brightness to the eye, with torchvision's weights."""
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def crop_and_resize(images, image_size, top, left, height, width):
    """Cuts a rectangle from each image and resizes it to a square.

    Args:
        images: uint8 or float32 (N, H, W, 3).
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
    images = ops.cast(images, "float32")
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
    image = images[0, first[0] : end[0], first[1] : end[1]]

    def resize(pixels, start, length):
        """Resizes the first axis of (H, W, 3)."""
        scale = image_size / length
        # As if of one column, for the kernel sums rows with the processor's
        # vectors and columns without.
        rows = ops.reshape(pixels, (1, ops.shape(pixels)[0], 1, -1))
        rows = tf.raw_ops.ScaleAndTranslate(
            images=rows,
            size=[image_size, 1],
            scale=[scale, 1.0],
            translation=[-start * scale, 0.0],
            kernel_type="triangle",
            antialias=True,
        )
        return ops.reshape(rows, (image_size, -1, 3))

    image = resize(image, top - ops.floor(top), height)
    image = ops.transpose(image, (1, 0, 2))
    image = resize(image, left - ops.floor(left), width)
    return ops.transpose(image, (1, 0, 2))[None]


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
        half = _weighted_neighbours(images, weights, axis=1)
        return _weighted_neighbours(half, weights, axis=2)

    if images.shape[0] != 1:
        return blur()
    return ops.cond(apply[0], blur, lambda: images)


def _weighted_neighbours(images, weights, axis):
    """Sums the neighbours of each pixel along an axis, weights (N, taps)."""
    reach = weights.shape[1] // 2
    edges = (0, ops.shape(images)[axis] - 1)
    before, after = (
        ops.take(images, ops.full((reach,), edge, "int32"), axis=axis)
        for edge in edges
    )
    # Padded before the fused kernel, which would pad anew for every tap.
    padded = ops.concatenate([before, images, after], axis=axis)
    return _weighted_windows(images, padded, weights, axis)


@fused
def _weighted_windows(images, padded, weights, axis):
    n, height, width, channels = ops.shape(images)
    # The longest rows there are, for the sake of the processor's vectors.
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
    # Image by image a processor does nothing in vain, and keeps the image at
    # hand. A GPU is better off doing every operation to all, and selecting.
    one_by_one = images.shape[0] == 1 or not accelerators.on_gpu()
    factors = (brightness, contrast, saturation, hue)
    return _jitter(images, factors, ops.cast(places, "int32"), one_by_one)


@fused
def _jitter(images, factors, places, one_by_one):
    """As `jitter`; a tuple of factors (N,), one for each operation."""
    if one_by_one:
        each = (images, factors, places)
        return ops.map(lambda one: _in_turn(_do_what_is_next, *one), each)
    factors = [factor[:, None, None] for factor in factors]
    places = ops.transpose(places)[:, :, None, None]
    return _in_turn(_do_all_and_select, images, factors, places)


def _in_turn(operate, images, factors, places):
    """Operates once for each place, on a tuple of channels."""
    # A loop: of four copies XLA would make one kernel, and take hours.
    channels = ops.unstack(images, axis=-1)
    channels = ops.fori_loop(
        0,
        len(_OPERATIONS),
        lambda place, x: operate(x, factors, places == place),
        tuple(channels),
    )
    return ops.stack(channels, axis=-1)


def _do_what_is_next(channels, factors, here):
    """One operation on one image, whose channels are (H, W)."""
    which = ops.where(ops.any(here), ops.argmax(here), len(_OPERATIONS))
    operations = [
        functools.partial(operation, factor)
        for operation, factor in zip(_OPERATIONS, factors, strict=True)
    ]
    leave = [lambda *channels: channels]
    return ops.switch(which, operations + leave, *channels)


def _do_all_and_select(channels, factors, here):
    """One operation on each image of a batch, whose channels are (N, H, W)."""
    result = channels
    for operation, factor, chosen in zip(
        _OPERATIONS, factors, ops.unstack(here), strict=True
    ):
        changed = operation(factor, *channels)
        result = tuple(
            ops.where(chosen, new, old)
            for new, old in zip(changed, result, strict=True)
        )
    return result


def _blend(factor, channels, others):
    return tuple(
        ops.clip(factor * c + (1.0 - factor) * other, 0.0, 255.0)
        for c, other in zip(channels, others, strict=True)
    )


def _change_brightness(factor, *channels):
    return _blend(factor, channels, 3 * [0.0])


def _change_contrast(factor, *channels):
    mean = ops.mean(_luma(*channels), axis=(-2, -1), keepdims=True)
    return _blend(factor, channels, 3 * [mean])


def _change_saturation(factor, *channels):
    return _blend(factor, channels, 3 * [_luma(*channels)])


def _shift_hue(turns, red, green, blue):
    """Turns the hue: to HSV and back at once."""
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


# In the order of the arguments of `jitter`.
_OPERATIONS = (
    _change_brightness,
    _change_contrast,
    _change_saturation,
    _shift_hue,
)


def _per_image(values):
    return values[:, None, None, None]


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
