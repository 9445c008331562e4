"""Code that brings images to the form they must have, for error messages."""

import keras
import numpy as np
import tensorflow as tf

# Code that makes images from other arrays, and from other tensors.
_ROUND = "{}.round().astype('uint8')", "tf.cast(tf.round({}), tf.uint8)"
_CAST = "{}.astype('uint8')", "tf.cast({}, tf.uint8)"
_OF_ONE = (
    "(255 * {}.clip(0, 1)).round().astype('uint8')",
    "tf.cast(tf.round(255 * tf.clip_by_value({}, 0, 1)), tf.uint8)",
)
_OF_SIGN = (
    "(127.5 * ({} + 1)).round().astype('uint8')",
    "tf.cast(tf.round(127.5 * ({} + 1)), tf.uint8)",
)
_OF_16_BITS = "({} // 257).astype('uint8')", "tf.cast({} // 257, tf.uint8)"
_OF_BOOL = "255 * {}.astype('uint8')", "255 * tf.cast({}, tf.uint8)"
REPEAT = "np.repeat({}, 3, axis=-1)", "tf.repeat({}, 3, axis=-1)"
REPEAT_NEW = (
    "np.repeat({}[..., None], 3, axis=-1)",
    "tf.repeat({}[..., None], 3, axis=-1)",
)
NEW = "{}[..., None]", "{}[..., None]"
TO_FLOAT = "{}.astype('float32')", "tf.cast({}, tf.float32)"
DROP = "{}[..., :3]", "{}[..., :3]"
ONE = "{}[None]", "{}[None]"
SHAPE = "{}", "tf.ensure_shape({}, (HEIGHT, WIDTH, CHANNELS))"
# For each kind of number, ranges of pixels, and code that brings them to
# [0, 255].
_RANGES = {
    "bool": [((0, 1), _OF_BOOL)],
    "int": [((0, 1), _OF_BOOL), ((0, 255), _CAST), ((0, 65535), _OF_16_BITS)],
    "float": [((0, 1), _OF_ONE), ((-1, 1), _OF_SIGN), ((0, 255), _ROUND)],
}


def is_known(images):
    """Whether the values are there, and not only their shape and dtype."""
    is_tensor = isinstance(images, tf.Tensor)
    return isinstance(images, np.ndarray) or (
        is_tensor and not tf.is_symbolic_tensor(images)
    )


def by(code, images, example=None, dataset="dataset"):
    """What to pass instead of images, with code that the user may paste.

    Args:
        code: one of those above.
        images, example, dataset: as in `checks.check_images`.
    """
    array, tensor = code
    if isinstance(images, np.ndarray):
        return f"pass `{array.format('images')}`"
    first = example[0] if isinstance(example, tuple) else example
    name, image = "image", "image"
    if isinstance(first, dict):
        name, image = "example", 'example["image"]'
    of_dataset = (
        f"pass `{dataset}.map(lambda {name}, *_: {tensor.format(image)})`"
    )
    if isinstance(images, tf.TensorSpec):
        return of_dataset
    of_tensor = f"pass `{tensor.format('images')}`"
    if is_known(images):
        return of_tensor
    return f"{of_tensor}, or, for a data set, {of_dataset}"


def to_eight_bits(images, *about):
    """What was received instead of uint8, and how to convert it, two texts.

    Args:
        images: of another type.
        about: more arguments of `by`.
    """
    dtype = keras.backend.standardize_dtype(images.dtype)
    kind = next((k for k in _RANGES if k in dtype), None)
    ranges = _RANGES.get(kind, [])
    received = f"dtype={dtype}"
    if is_known(images) and kind and len(images):
        values = np.asarray(images)
        low, high = values.min().item(), values.max().item()
        received += f", pixels from {low:g} to {high:g}"
        # Resizing may go a little beyond a range.
        off = 0.25 if kind == "float" else 0
        ranges = [
            ((least, most), code)
            for (least, most), code in ranges
            if least - off <= low and high <= most + off
        ][:1]
    remedies = [
        f"If pixels are in [{low}, {high}], {by(code, images, *about)}."
        for (low, high), code in ranges
    ] or ["Undo what has moved their pixels out of [0, 255]."]
    return received, " ".join(remedies)
