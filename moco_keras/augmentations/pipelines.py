"""Pipelines of random views, as the papers have them."""

import keras

from moco_keras import arguments
from moco_keras.augmentations.crops import (
    CenterCropAndResize,
    RandomResizedCrop,
)
from moco_keras.augmentations.jitter import (
    RandomColorJitter,
    RandomIntensityJitter,
)
from moco_keras.augmentations.layers import (
    RandomChannelDrop,
    RandomGaussianBlur,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomRightAngle,
)


def moco_v1(image_size=224, min_area=0.2, *, value_range=None):
    """The augmentation of MoCo v1: crop, grayscale, strong jitter, flip.

    Args:
        image_size: of the views in pixels: their side, or height and width.
        min_area: smallest area of a crop, as a part of the image's.
        value_range: the darkest and the brightest value of the pixels, as in
            `build_encoder`; None means [0, 255].

    Returns:
        A `keras.layers.Pipeline` from images (N, H, W, 3) to float32 views (N,
        height, width, 3), pixels of the same range.

    Reference:
        Section 3.3 of [He et al., 2020](https://arxiv.org/abs/1911.05722).
    """
    return keras.layers.Pipeline(
        [
            _crop(image_size, min_area),
            RandomGrayscale(),
            RandomColorJitter(hue=0.4, rate=1.0, value_range=value_range),
            RandomHorizontalFlip(),
        ],
        name="moco_v1",
    )


def moco_v2(image_size=224, min_area=0.2, *, value_range=None):
    """The augmentation of MoCo v2: crop, jitter, grayscale, blur, flip.

    The paper blurs by 0.1 to 2 pixels at 224 pixels. At another size the blur
    is the same part of the picture.

    Args and returns: as `moco_v1`.

    Reference:
        Section 3 of [Chen et al., 2020](https://arxiv.org/abs/2003.04297).
    """
    return keras.layers.Pipeline(
        [
            _crop(image_size, min_area),
            RandomColorJitter(value_range=value_range),
            RandomGrayscale(),
            _blur(image_size),
            RandomHorizontalFlip(),
        ],
        name="moco_v2",
    )


def cifar(image_size=32, min_area=0.08, *, value_range=None):
    """The augmentation of the CIFAR-10 notebook: crop, flip, jitter, grayscale.

    Args and returns: as `moco_v1`.
    """
    return keras.layers.Pipeline(
        [
            _crop(image_size, min_area),
            RandomHorizontalFlip(),
            RandomColorJitter(value_range=value_range),
            RandomGrayscale(),
        ],
        name="cifar",
    )


def gray(image_size=224, min_area=0.2, *, value_range=None, turns=False):
    """The augmentation of MoCo v2 without color, for images of one channel.

    Crop, brightness and contrast, blur and flip are those of `moco_v2`; a
    change of gamma takes the place of saturation, hue and grayscale.

    Args:
        image_size, min_area, value_range: as in `moco_v1`.
        turns: whether to turn views by right angles, for images without an up.

    Returns:
        A `keras.layers.Pipeline` from images (N, H, W, 1) to float32 views (N,
        height, width, 1), pixels of the same range.
    """
    return keras.layers.Pipeline(
        [
            _crop(image_size, min_area),
            RandomIntensityJitter(value_range=value_range),
            _blur(image_size),
            *_flips(turns),
        ],
        name="gray",
    )


def multichannel(
    image_size=224, min_area=0.2, *, value_range=None, turns=False
):
    """The augmentation of `gray` for images of several channels of any kind.

    All channels are changed together, then each by itself, and then some are
    dropped.

    Args and returns: as `gray`, of images (N, H, W, C).
    """
    return keras.layers.Pipeline(
        [
            _crop(image_size, min_area),
            RandomIntensityJitter(value_range=value_range),
            RandomIntensityJitter(
                0.2, 0.2, 0.1, per_channel=True, value_range=value_range
            ),
            RandomChannelDrop(value_range=value_range),
            _blur(image_size),
            *_flips(turns),
        ],
        name="multichannel",
    )


def crop_and_flip(image_size=224, min_area=0.08):
    """The augmentation of training with labels: crop and flip.

    Args and returns: as `moco_v1`, of images of any number of channels.

    Reference:
        Section 4.1 of [He et al., 2020](https://arxiv.org/abs/1911.05722), and
        its code.
    """
    return keras.layers.Pipeline(
        [_crop(image_size, min_area), RandomHorizontalFlip()],
        name="crop_and_flip",
    )


def _crop(image_size, min_area):
    min_area = arguments.real(arguments.POSITIVE_FRACTION, min_area=min_area)
    height, width = arguments.sides(image_size=image_size)
    # So that views which are not square show nothing stretched much.
    ratio = (3 / 4 * (width / height), 4 / 3 * (width / height))
    return RandomResizedCrop(image_size, scale=(min_area, 1.0), ratio=ratio)


def _blur(image_size):
    pixel = min(arguments.sides(image_size=image_size)) / 224
    return RandomGaussianBlur(sigma=(0.1 * pixel, 2.0 * pixel))


def _flips(turns):
    return [RandomHorizontalFlip(), *([RandomRightAngle()] * turns)]


def evaluation(image_size=224):
    """The center of an image, not at random, for features and predictions.

    An image that has the size already passes as it is. Of any other, the
    largest centered part of this shape is taken; 7/8 of its height and width
    are resized with antialiasing: the usual resize to 256 and crop to 224.

    Args:
        image_size: of the result in pixels: its side, or height and width.

    Returns:
        A layer from images (N, H, W, C) to float32 (N, height, width, C),
        pixels of the same range.
    """
    return CenterCropAndResize(image_size, name="evaluation")
