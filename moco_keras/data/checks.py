"""What images and views must be, checked early."""

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
_REPEAT = "np.repeat({}, 3, axis=-1)", "tf.repeat({}, 3, axis=-1)"
_REPEAT_NEW = (
    "np.repeat({}[..., None], 3, axis=-1)",
    "tf.repeat({}[..., None], 3, axis=-1)",
)
_DROP = "{}[..., :3]", "{}[..., :3]"
_ONE = "{}[None]", "{}[None]"
# For each kind of number, ranges of pixels, and code that brings them to
# [0, 255].
_RANGES = {
    "bool": [((0, 1), _OF_BOOL)],
    "int": [((0, 1), _OF_BOOL), ((0, 255), _CAST), ((0, 65535), _OF_16_BITS)],
    "float": [((0, 1), _OF_ONE), ((-1, 1), _OF_SIGN), ((0, 255), _ROUND)],
}


def unpack_images(data):
    """Finds the images in what a data set yields.

    Args:
        data: a tensor, array or `tf.TensorSpec` of images; a tuple of (image,
            label); a dict with "image"; or a pair of views, two of rank 4.

    Returns:
        The images, or a tuple (im_q, im_k) for a pair of views.
    """
    if isinstance(data, dict):
        if "image" not in data:
            raise ValueError(
                'A data set of dicts must hold its images under "image". '
                f"Received the keys: {sorted(data)}."
            )
        return data["image"]
    if isinstance(data, (tuple, list)):
        first = unpack_images(data[0])
        if isinstance(first, tuple):  # ((im_q, im_k),), as Keras wraps it
            return first
        if len(data) > 1 and len(getattr(data[1], "shape", ())) == 4:
            return first, data[1]
        return first
    return data


def check_images(images, example=None, dataset="dataset"):
    """Refuses anything but a batch of RGB images of eight bits a channel.

    Args:
        images: an array, tensor or `tf.TensorSpec`.
        example: of a data set, the `element_spec` that the images are part of.
        dataset: what to call the data set in code that the user may paste.

    Raises:
        ValueError: saying what is wrong and what to do.
    """

    def remedy_by(code):
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
        if _is_known(images):
            return of_tensor
        return f"{of_tensor}, or, for a data set, {of_dataset}"

    shape = getattr(images, "shape", None)
    expected = "Images must be a uint8 batch of shape (N, height, width, 3)."
    if isinstance(images, (tf.RaggedTensorSpec, tf.RaggedTensor)) or (
        isinstance(images, np.ndarray) and images.dtype.hasobject
    ):
        raise ValueError(
            f"{expected} Received images of unequal sizes. Resize them to one "
            "size, or cut two views from each before batching, with "
            "`moco_keras.data.two_views`."
        )
    if shape is None or len(shape) != 4:
        received = type(images).__name__ if shape is None else f"shape={shape}"
        if isinstance(images, dict):
            remedy = (
                f"For a data set, pass `{dataset}.map(lambda example, *_: "
                'example["image"])`.'
            )
        elif shape is None or len(shape) != 3:
            remedy = "Pass an array or a `tf.data.Dataset` of such images."
        elif shape[-1] not in (1, 3, 4):
            remedy = f"For images in gray, {remedy_by(_REPEAT_NEW)}."
        elif isinstance(images, tf.TensorSpec):
            remedy = (
                f"Batch them: pass `{dataset}.batch(256, drop_remainder=True)`."
            )
        else:
            remedy = f"For a single image, {remedy_by(_ONE)}."
        raise ValueError(f"{expected} Received: {received}. {remedy}")
    if shape[-1] != 3:
        remedy = {
            1: f"Repeat the channel: {remedy_by(_REPEAT)}.",
            4: f"Drop the alpha channel: {remedy_by(_DROP)}.",
        }.get(shape[-1], "Put the three color channels last.")
        raise ValueError(
            f"{expected} Received: {shape[-1]} channels, shape={shape}. "
            f"{remedy}"
        )
    dtype = keras.backend.standardize_dtype(images.dtype)
    if dtype != "uint8":
        kind = next((k for k in _RANGES if k in dtype), None)
        ranges = _RANGES.get(kind, [])
        received = f"dtype={dtype}"
        if _is_known(images) and kind and len(images):
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
            f"If pixels are in [{low}, {high}], {remedy_by(code)}."
            for (low, high), code in ranges
        ] or ["Undo what has moved their pixels out of [0, 255]."]
        raise ValueError(
            f"{expected} Received: {received}. {' '.join(remedies)}"
        )


def check_pair(im_q, im_k):
    """Refuses images with masks, which look like a pair of views.

    Args:
        im_q, im_k: arrays, tensors or `tf.TensorSpec`s of rank 4.

    Raises:
        ValueError: if they are not both of floats.
    """
    dtypes = [tf.as_dtype(views.dtype) for views in (im_q, im_k)]
    if not all(dtype.is_floating for dtype in dtypes):
        raise ValueError(
            "A pair of views must be two float batches of shape (N, height, "
            "width, 3), pixels in [0, 255]. Received a pair of "
            f"{dtypes[0].name} {tuple(im_q.shape)} and {dtypes[1].name} "
            f"{tuple(im_k.shape)}. If the second are masks or targets, leave "
            "them out, with `dataset.map(lambda image, mask: image)` for "
            "example; if both are views, cast them to float32."
        )


def _is_known(images):
    """Whether the values are there, and not only their shape and dtype."""
    is_tensor = isinstance(images, tf.Tensor)
    return isinstance(images, np.ndarray) or (
        is_tensor and not tf.is_symbolic_tensor(images)
    )


def check_size(images, encoder, name):
    """Refuses images that are not of an encoder's size.

    Args:
        images: an array or tensor (N, H, W, 3).
        encoder: `keras.Model` of images.
        name: that users know the images by.

    Raises:
        ValueError: saying both shapes and what to do.
    """
    expected = tuple(encoder.input_shape[1:])
    if not _fits(images, expected):
        raise ValueError(
            f"{name} must hold images of the encoder's size, {expected}. "
            f"Received: shape={tuple(images.shape)}. Bring them to it: `np."
            f"asarray(augmentations.evaluation({expected[0]})(images)).round()"
            ".astype('uint8')`."
        )


def _fits(images, expected):
    """Whether a model that takes images of a shape takes those of a batch."""
    received = tuple(images.shape[1:])
    return len(received) == len(expected) and all(
        None in (a, b) or a == b
        for a, b in zip(received, expected, strict=True)
    )


def check_views(im_q, im_k, encoder):
    """Refuses views that the encoder cannot take.

    Args:
        im_q, im_k: arrays, tensors or `tf.TensorSpec`s of rank 4.
        encoder: the query encoder.

    Raises:
        ValueError: saying both shapes and what to do.
    """
    expected = tuple(encoder.input_shape[1:])
    for views in (im_q, im_k):
        if not _fits(views, expected):
            raise ValueError(
                f"The encoder takes images of shape {expected}. Received "
                f"views of shape {tuple(views.shape[1:])}. Build the encoder "
                "and the augmenter with the same `image_size`."
            )


def check_batch_size(batch_size, num_images):
    """Refuses batches that the images do not fill."""
    if batch_size > num_images:
        raise ValueError(
            "`batch_size` must be at most the number of images. Received: "
            f"batch_size={batch_size}, {num_images} images."
        )


def check(images, example=None):
    """Refuses anything but images or a pair of views."""
    if isinstance(images, tuple):
        check_pair(*images)
    else:
        check_images(images, example)
