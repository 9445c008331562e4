"""What images and views must be, checked early."""

import math

import keras
import numpy as np
import tensorflow as tf

from moco_keras import pixel_format
from moco_keras.data import remedies


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
        if len(data) > 1 and _rank(data[1]) == 4:
            return first, data[1]
        return first
    return data


def _rank(x):
    """How many dimensions an array, a tensor or a spec has, or None."""
    shape = getattr(x, "shape", None)
    if isinstance(shape, tf.TensorShape):
        return shape.rank
    return None if shape is None else len(shape)


def check_images(
    images, example=None, dataset="dataset", pixels=pixel_format.RGB
):
    """Refuses anything but a batch of images of the right kind.

    Args:
        images: an array, tensor or `tf.TensorSpec`.
        example: of a data set, the `element_spec` that the images are part of.
        dataset: what to call the data set in code that the user may paste.
        pixels: what the images must be, a `PixelFormat`; or None to check
            their shape alone.

    Raises:
        ValueError: saying what is wrong and what to do.
    """
    about = images, example, dataset
    shape = getattr(images, "shape", None)
    expected = _expected(pixels)
    if isinstance(images, (tf.RaggedTensorSpec, tf.RaggedTensor)) or (
        isinstance(images, np.ndarray) and images.dtype.hasobject
    ):
        raise ValueError(
            f"{expected} Received images of unequal sizes. Resize them to one "
            "size, or cut two views from each before batching, with "
            "`moco_keras.data.two_views`."
        )
    rank = _rank(images)
    if shape is not None and (
        rank is None
        or (pixels and pixels.channels and rank == 4 and shape[-1] is None)
    ):
        raise ValueError(
            f"{expected} Received: shape={shape}, whose channels are not "
            "known. Set the shape before images are batched: "
            f"{remedies.by(remedies.SHAPE, *about)}, with None for a side that "
            "is not always the same."
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
        elif shape[-1] not in (1, 3, 4, pixels and pixels.channels):
            rgb = pixels and pixels.channels == 3
            new = remedies.REPEAT_NEW if rgb else remedies.NEW
            remedy = f"For images in gray, {remedies.by(new, *about)}."
        elif isinstance(images, tf.TensorSpec):
            remedy = (
                f"Batch them: pass `{dataset}.batch(256, drop_remainder=True)`."
            )
        else:
            one = remedies.by(remedies.ONE, *about)
            remedy = f"For a single image, {one}."
        raise ValueError(f"{expected} Received: {received}. {remedy}")
    if pixels is None:
        return
    if pixels.channels not in (None, shape[-1]):
        remedy = (
            "Put the channels last, or build the encoder with "
            f"`channels={shape[-1]}`."
        )
        if pixels.channels == 3 and shape[-1] in (1, 4):
            what, code = {
                1: ("Repeat the channel", remedies.REPEAT),
                4: ("Drop the alpha channel", remedies.DROP),
            }[shape[-1]]
            remedy = f"{what}: {remedies.by(code, *about)}. {remedy}"
        raise ValueError(
            f"{expected} Received: {shape[-1]} channels, shape={shape}. "
            f"{remedy}"
        )
    if pixels.value_range is not None:
        _check_range(images, pixels, expected, about)
        return
    if images.dtype != "uint8":
        received, remedy = remedies.to_eight_bits(*about)
        raise ValueError(
            f"{expected} Received: {received}. {remedy} To keep more than 8 "
            "bits of each, build the encoder with "
            "`value_range=(LEAST, GREATEST)`."
        )


def _expected(pixels):
    """What images must be, a sentence."""
    channels = (pixels and pixels.channels) or "channels"
    shape = f"shape (N, height, width, {channels})"
    if pixels is None:
        return f"Images must be a batch of {shape}."
    if pixels.value_range is None:
        return f"Images must be a uint8 batch of {shape}."
    *dtypes, last = pixels.dtypes
    return (
        f"Images must be a batch of {shape}, of {', '.join(dtypes)} or {last}, "
        f"with pixels in {pixels}."
    )


def _check_range(images, pixels, expected, about):
    """Refuses pixels of another type or range, where their values are known."""
    dtype = keras.backend.standardize_dtype(images.dtype)
    if dtype not in pixels.dtypes:
        raise ValueError(
            f"{expected} Received: dtype={dtype}. To convert them, "
            f"{remedies.by(remedies.TO_FLOAT, *about)}."
        )
    if not remedies.is_known(images) or not len(images):
        return
    values = np.asarray(images)
    low, high = values.min().item(), values.max().item()  # or NaN
    if not math.isfinite(high - low):
        finite = np.isfinite(values).all(axis=(1, 2, 3))
        raise ValueError(
            f"{expected} Received: NaN or infinity in {np.sum(~finite)} of "
            f"them, the first being images[{np.argmin(finite)}]. Leave them "
            "out, or replace such pixels."
        )
    if not pixels.holds(low, high, dtype):
        raise ValueError(
            f"{expected} Received: pixels from {low:g} to {high:g}. Build "
            "encoder and augmenter with a `value_range` that holds them, or "
            "clip them."
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
            "width, channels), with pixels in the range that the encoder "
            "takes. Received a pair of "
            f"{dtypes[0].name} {tuple(im_q.shape)} and {dtypes[1].name} "
            f"{tuple(im_k.shape)}. If the second are masks or targets, leave "
            "them out, with `dataset.map(lambda image, mask: image)` for "
            "example; if both are views, cast them to float32."
        )


def check_for(images, encoder, name):
    """Refuses images that an encoder cannot take as they are.

    Args:
        images: an array or tensor (N, H, W, C).
        encoder: `keras.Model` of images.
        name: that users know the images by.

    Raises:
        ValueError: saying both shapes and what to do.
    """
    pixels = pixel_format.of(encoder)
    check_images(images, pixels=pixels)
    expected = tuple(encoder.input_shape[1:])
    if not _fits(images, expected):
        size = expected[0] if expected[0] == expected[1] else expected[:2]
        code = f"np.asarray(augmentations.evaluation({size})(images))"
        if pixels.value_range is None:
            code += ".round().astype('uint8')"
        raise ValueError(
            f"{name} must hold images of the encoder's size, {expected}. "
            f"Received: shape={tuple(images.shape)}. Bring them to it: "
            f"`{code}`."
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
                f"The encoder takes views of shape {expected}. Received views "
                f"of shape {tuple(views.shape[1:])}. Build the encoder and the "
                "augmenter with the same `image_size`, or pass the size of the "
                "views as `view_size`."
            )


def check_batch_size(batch_size, num_images):
    """Refuses batches that the images do not fill."""
    if batch_size > num_images:
        raise ValueError(
            "`batch_size` must be at most the number of images. Received: "
            f"batch_size={batch_size}, {num_images} images."
        )


def check(images, pixels, example=None):
    """Refuses anything but images or a pair of views."""
    if isinstance(images, tuple):
        check_pair(*images)
    else:
        check_images(images, example, pixels=pixels)
