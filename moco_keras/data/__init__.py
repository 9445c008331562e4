"""See `sources`."""

from moco_keras.data.sources import (
    SPLITS,
    ImageSet,
    ImageStream,
    find_builder,
    load,
    read,
    read_folder,
    read_named,
    read_splits,
    two_views,
)

__all__ = [
    "SPLITS",
    "ImageSet",
    "ImageStream",
    "find_builder",
    "load",
    "read",
    "read_folder",
    "read_named",
    "read_splits",
    "two_views",
]
