"""Pipelines of random views, as the papers have them."""

import keras

from moco_keras import arguments
from moco_keras.augmentations.crops import (
    CenterCropAndResize,
    RandomResizedCrop,
)
from moco_keras.augmentations.layers import (
    RandomColorJitter,
    RandomGaussianBlur,
    RandomGrayscale,
    RandomHorizontalFlip,
)


def moco_v1(image_size=224, min_area=0.2):
    """The augmentation of MoCo v1: crop, grayscale, strong jitter, flip.

    Args:
        image_size: side of the views, in pixels.
        min_area: smallest area of a crop, as a part of the image's.

    Returns:
        A `keras.layers.Pipeline` from images (N, H, W, 3), pixels in [0, 255],
        to float32 views (N, image_size, image_size, 3), pixels in [0, 255].

    Reference:
        Section 3.3 of [He et al., 2020](https://arxiv.org/abs/1911.05722).
    """
    return keras.layers.Pipeline(
        [
            _crop(image_size, min_area),
            RandomGrayscale(),
            RandomColorJitter(hue=0.4, rate=1.0),
            RandomHorizontalFlip(),
        ],
        name="moco_v1",
    )


def moco_v2(image_size=224, min_area=0.2):
    """The augmentation of MoCo v2: crop, jitter, grayscale, blur, flip.

    The paper blurs by 0.1 to 2 pixels at 224 pixels. At another size the blur
    is the same part of the picture.

    Args and returns: as `moco_v1`.

    Reference:
        Section 3 of [Chen et al., 2020](https://arxiv.org/abs/2003.04297).
    """
    pixel = arguments.whole(image_size=image_size) / 224
    return keras.layers.Pipeline(
        [
            _crop(image_size, min_area),
            RandomColorJitter(),
            RandomGrayscale(),
            RandomGaussianBlur(sigma=(0.1 * pixel, 2.0 * pixel)),
            RandomHorizontalFlip(),
        ],
        name="moco_v2",
    )


def cifar(image_size=32, min_area=0.08):
    """The augmentation of the CIFAR-10 notebook: crop, flip, jitter, grayscale.

    Args and returns: as `moco_v1`.
    """
    return keras.layers.Pipeline(
        [
            _crop(image_size, min_area),
            RandomHorizontalFlip(),
            RandomColorJitter(),
            RandomGrayscale(),
        ],
        name="cifar",
    )


def crop_and_flip(image_size=224, min_area=0.08):
    """The augmentation of training with labels: crop and flip.

    Args and returns: as `moco_v1`.

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
    return RandomResizedCrop(image_size, scale=(min_area, 1.0))


def evaluation(image_size=224):
    """The center of an image, not at random, for features and predictions.

    An image that has the size already passes as it is. Any other is cut to the
    centered square of 7/8 of its shorter side and resized with antialiasing,
    which is the usual resize to 256 and crop to 224.

    Args:
        image_size: side of the result, in pixels.

    Returns:
        A layer from images (N, H, W, 3), pixels in [0, 255], to float32
        (N, image_size, image_size, 3).
    """
    return CenterCropAndResize(image_size, name="evaluation")
