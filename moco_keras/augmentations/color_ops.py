"""Color operations on batches of images, each image with its own parameters.

Tensors in, tensors out. They mean what torchvision's mean. `bounds` are the
darkest and the brightest value of the pixels.
"""

import functools

from keras import ops

from moco_keras.augmentations.compiling import apply_where, jit_compiled
from moco_keras.distribution import accelerators


@apply_where
def grayscale(images):
    """Takes the color from images."""
    return _luma(*(images[..., i : i + 1] for i in range(3)))


@apply_where
def solarize(images, threshold, bounds):
    """Inverts values from `threshold` on."""
    return ops.where(images >= threshold, sum(bounds) - images, images)


def drop_channels(images, drop, value):
    """Gives some channels of each image one value.

    Args:
        images: float32 (N, H, W, C).
        drop: bool (N, C), which channels.
        value: that they get.
    """
    return ops.where(drop[:, None, None, :], value, images)


def _luma(red, green, blue):
    """Brightness to the eye, with torchvision's weights."""
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def jitter(images, brightness, contrast, saturation, hue, places, bounds):
    """Applies the four color operations to each image, in its own order.

    Args:
        images: float32 (N, H, W, 3).
        brightness, contrast, saturation: float32 (N,), factors.
        hue: float32 (N,), shifts in turns.
        places: int (N, 4), the place (0 to 3) of each operation, in the order
            of the arguments; an operation at any other place is not applied.
        bounds: of the pixels, two numbers.

    Returns:
        float32 (N, H, W, 3).
    """
    factors = (brightness, contrast, saturation, hue)
    return _in_own_order("color", images, factors, places, bounds)


def intensity_jitter(images, brightness, contrast, gamma, places, bounds):
    """Applies three operations to each image, in its own order.

    Args:
        images: float32 (N, H, W, C). Each channel has the contrast with its own
            mean.
        brightness, contrast: float32 (N,), factors.
        gamma: float32 (N,), exponents.
        places: int (N, 3), as in `jitter`.
        bounds: of the pixels, two numbers.

    Returns:
        float32 (N, H, W, C).
    """
    factors = (brightness, contrast, gamma)
    return _in_own_order("intensity", images, factors, places, bounds)


def _in_own_order(kind, images, factors, places, bounds):
    # Image by image, a CPU does nothing in vain and keeps the image in its
    # cache. A GPU is faster if it does every operation to all, and selects.
    one_by_one = images.shape[0] == 1 or not accelerators.on_gpu()
    places = ops.cast(places, "int32")
    return _apply_operations(images, factors, places, kind, bounds, one_by_one)


@jit_compiled
def _apply_operations(images, factors, places, kind, bounds, one_by_one):
    """As `jitter`; a tuple of factors (N,), one for each operation."""
    operations = [
        functools.partial(operation, bounds) for operation in _OPERATIONS[kind]
    ]
    if one_by_one:
        each = (images, factors, places)
        apply = functools.partial(_apply_next, operations)
        return ops.map(lambda one: _apply_in_order(apply, *one), each)
    factors = [factor[:, None, None] for factor in factors]
    places = ops.transpose(places)[:, :, None, None]
    apply = functools.partial(_apply_all_and_select, operations)
    return _apply_in_order(apply, images, factors, places)


def _apply_in_order(operate, images, factors, places):
    """Calls `operate` once for each place, on a tuple of channels."""
    # A loop: XLA would make one kernel of four copies, and take hours.
    channels = ops.unstack(images, axis=-1)
    channels = ops.fori_loop(
        0,
        len(factors),
        lambda place, x: operate(x, factors, places == place),
        tuple(channels),
    )
    return ops.stack(channels, axis=-1)


def _apply_next(operations, channels, factors, here):
    """Applies one operation to one image, whose channels are (H, W)."""
    which = ops.where(ops.any(here), ops.argmax(here), len(operations))
    operations = [
        functools.partial(operation, factor)
        for operation, factor in zip(operations, factors, strict=True)
    ]
    unchanged = [lambda *channels: channels]
    return ops.switch(which, operations + unchanged, *channels)


def _apply_all_and_select(operations, channels, factors, here):
    """Applies one operation to each image; channels are (N, H, W)."""
    result = channels
    for operation, factor, chosen in zip(
        operations, factors, ops.unstack(here), strict=True
    ):
        changed = operation(factor, *channels)
        result = tuple(
            ops.where(chosen, new, old)
            for new, old in zip(changed, result, strict=True)
        )
    return result


def _blend(bounds, factor, channels, others):
    return tuple(
        ops.clip(factor * c + (1.0 - factor) * other, *bounds)
        for c, other in zip(channels, others, strict=True)
    )


def _change_brightness(bounds, factor, *channels):
    return _blend(bounds, factor, channels, len(channels) * [bounds[0]])


def _change_contrast(bounds, factor, *channels):
    mean = _mean(_luma(*channels))
    return _blend(bounds, factor, channels, 3 * [mean])


def _change_contrast_of_each(bounds, factor, *channels):
    return _blend(bounds, factor, channels, [_mean(c) for c in channels])


def _mean(channel):
    return ops.mean(channel, axis=(-2, -1), keepdims=True)


def _change_saturation(bounds, factor, *channels):
    return _blend(bounds, factor, channels, 3 * [_luma(*channels)])


def _change_gamma(bounds, exponent, *channels):
    low, high = bounds

    def change(channel):
        part = ops.clip((channel - low) / (high - low), 0.0, 1.0)
        return low + (high - low) * part**exponent

    return tuple(change(channel) for channel in channels)


def _shift_hue(bounds, turns, red, green, blue):
    """Turns the hue: to HSV and back in one step."""
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


# In the order of the arguments.
_OPERATIONS = {
    "color": (
        _change_brightness,
        _change_contrast,
        _change_saturation,
        _shift_hue,
    ),
    "intensity": (
        _change_brightness,
        _change_contrast_of_each,
        _change_gamma,
    ),
}
