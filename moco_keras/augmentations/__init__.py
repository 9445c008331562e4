"""Random views of images: pipelines of the papers, and their layers."""

from moco_keras.augmentations.crops import (
    CenterCropAndResize,
    RandomResizedCrop,
)
from moco_keras.augmentations.layers import (
    RandomColorJitter,
    RandomGaussianBlur,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomSolarize,
)
from moco_keras.augmentations.pipelines import (
    cifar,
    crop_and_flip,
    evaluation,
    moco_v1,
    moco_v2,
)

__all__ = [
    "CenterCropAndResize",
    "RandomColorJitter",
    "RandomGaussianBlur",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomSolarize",
    "cifar",
    "crop_and_flip",
    "evaluation",
    "moco_v1",
    "moco_v2",
]
