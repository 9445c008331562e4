"""Where images come from: TensorFlow Datasets, folders, arrays."""

from moco_keras.data.builders import find_builder, image_feature
from moco_keras.data.folders import SPLITS
from moco_keras.data.image_sets import ImageSet, ImageStream
from moco_keras.data.labeled import labeled_batches
from moco_keras.data.sources import (
    load,
    read,
    read_folder,
    read_named,
    read_splits,
)
from moco_keras.data.views import two_views

__all__ = [
    "SPLITS",
    "ImageSet",
    "ImageStream",
    "find_builder",
    "image_feature",
    "labeled_batches",
    "load",
    "read",
    "read_folder",
    "read_named",
    "read_splits",
    "two_views",
]
