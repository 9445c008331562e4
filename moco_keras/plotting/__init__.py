"""Pictures of a run."""

from moco_keras.pixel_format import as_rgb
from moco_keras.plotting.by_epoch import curves, health
from moco_keras.plotting.classification import (
    confusion,
    few_labels,
    labeled_pictures,
    mistakes,
)
from moco_keras.plotting.maps import embedding_map
from moco_keras.plotting.page import data_uri, report
from moco_keras.plotting.pictures import nearest, neighbours, views

__all__ = [
    "as_rgb",
    "confusion",
    "curves",
    "data_uri",
    "embedding_map",
    "few_labels",
    "health",
    "labeled_pictures",
    "mistakes",
    "nearest",
    "neighbours",
    "report",
    "views",
]
