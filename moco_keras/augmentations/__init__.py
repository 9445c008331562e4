"""Random views of images: pipelines of the papers, and their layers."""

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
    RandomSolarize,
)
from moco_keras.augmentations.pipelines import (
    cifar,
    crop_and_flip,
    evaluation,
    gray,
    moco_v1,
    moco_v2,
    multichannel,
)

__all__ = [
    "CenterCropAndResize",
    "RandomChannelDrop",
    "RandomColorJitter",
    "RandomGaussianBlur",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomIntensityJitter",
    "RandomResizedCrop",
    "RandomRightAngle",
    "RandomSolarize",
    "cifar",
    "crop_and_flip",
    "evaluation",
    "gray",
    "moco_v1",
    "moco_v2",
    "multichannel",
]
