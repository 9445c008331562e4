"""Operations on batches of images, each image with parameters of its own.

Tensors in, tensors out, pixels in [0, 255]. They mean what torchvision's mean.
"""

import math

from keras import ops


def luma(images):
    """Brightness to the eye, (N, H, W, 1), with torchvision's weights."""
    return ops.matmul(images, ops.array([[0.2989], [0.587], [0.114]]))


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
    in_height, in_width = height_and_width(images)
    rows = _triangle_weights(top, height, in_height, image_size)
    columns = _triangle_weights(left, width, in_width, image_size)
    return _separable(images, rows, columns)


def gaussian_blur(images, sigma, max_sigma):
    """Blurs each image, repeating its edge pixels outwards.

    Args:
        images: float32 (N, H, W, 3).
        sigma: float32 (N,), standard deviations in pixels.
        max_sigma: bound of `sigma`; the kernel reaches three times as far.

    Returns:
        float32 (N, H, W, 3).
    """
    radius = math.ceil(3 * max_sigma)
    height, width = height_and_width(images)
    rows = _gaussian_weights(sigma, height, radius)
    columns = _gaussian_weights(sigma, width, radius)
    return _separable(images, rows, columns)


def jitter(images, brightness, contrast, saturation, hue, places, apply=None):
    """Applies the four colour operations to each image, in its own order.

    Args:
        images: float32 (N, H, W, 3), pixels in [0, 255].
        brightness, contrast, saturation: float32 (N,), factors.
        hue: float32 (N,), shifts in turns.
        places: int (N, 4), the place (0 to 3) of each operation, in the order
            of the arguments.
        apply: ignored here.

    Returns:
        float32 (N, H, W, 3), pixels in [0, 255].
    """

    def blend_at(images, place, active):
        """Does the blend whose place it is, where `active`."""
        is_brightness, is_contrast, is_saturation = (
            ops.logical_and(places[:, i] == place, active) for i in range(3)
        )
        factor = ops.where(is_brightness, brightness, 1.0)
        factor = ops.where(is_contrast, contrast, factor)
        factor = ops.where(is_saturation, saturation, factor)
        # Brightness blends with black, contrast with the mean of the gray
        # image, saturation with the gray image itself.
        gray = luma(images)
        mean = ops.mean(gray, axis=(1, 2, 3), keepdims=True)
        other = _per_image((1.0 - factor) * ops.cast(is_saturation, "float32"))
        other = other * gray + mean * _per_image(
            (1.0 - factor) * ops.cast(is_contrast, "float32")
        )
        return ops.clip(_per_image(factor) * images + other, 0.0, 255.0)

    # Hue is dear, so each image is shifted once, between the blends that come
    # before and those that come after it.
    for place in range(3):
        images = blend_at(images, place, active=places[:, 3] > place)
    images = shift_hue(images, hue)
    for place in range(1, 4):
        images = blend_at(images, place, active=places[:, 3] < place)
    return images


def shift_hue(images, turns):
    """Turns the hue of each image.

    Args:
        images: float32 (N, H, W, 3), pixels in [0, 255].
        turns: float32 (N,).

    Returns:
        float32 (N, H, W, 3).
    """
    hsv = ops.image.rgb_to_hsv(images / 255.0, data_format="channels_last")
    hue = hsv[..., 0:1] + _per_image(turns)
    hsv = ops.concatenate([hue - ops.floor(hue), hsv[..., 1:]], axis=-1)
    return 255.0 * ops.image.hsv_to_rgb(hsv, data_format="channels_last")


def solarize(images, threshold=128.0):
    """Inverts the values of `threshold` and above, of pixels in [0, 255]."""
    return ops.where(images >= threshold, 255.0 - images, images)


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
    inside = (pixel > start) & (pixel < start + length)  # (N, 1, in)
    weights = ops.where(inside, weights, 0.0)
    return weights / ops.sum(weights, axis=2, keepdims=True)


def _gaussian_weights(sigma, size, radius):
    """Weights (N, size, size) that blur an axis, edges repeated."""
    pixel = ops.arange(size, dtype="float32")
    source = ops.arange(-radius, size + radius, dtype="float32")
    distance = source - pixel[:, None]  # (size, size + 2 radius)
    sigma = sigma[:, None, None]
    weights = ops.exp(-0.5 * (distance / sigma) ** 2)
    weights = ops.where(ops.abs(distance) <= radius, weights, 0.0)
    weights = weights / ops.sum(weights, axis=2, keepdims=True)
    # What falls off an end counts for the pixel at that end.
    before = ops.sum(weights[:, :, :radius], axis=2, keepdims=True)
    after = ops.sum(weights[:, :, -radius:], axis=2, keepdims=True)
    weights = weights[:, :, radius:-radius]
    first = ops.cast(pixel == 0, "float32")
    last = ops.cast(pixel == size - 1, "float32")
    return weights + before * first + after * last


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
