"""Pictures of a run."""

from moco_keras.plotting.by_epoch import curves, health
from moco_keras.plotting.classification import (
    confusion,
    few_labels,
    labeled_pictures,
    mistakes,
)
from moco_keras.plotting.pictures import nearest, neighbours, views

__all__ = [
    "confusion",
    "curves",
    "few_labels",
    "health",
    "labeled_pictures",
    "mistakes",
    "nearest",
    "neighbours",
    "views",
]
