"""Pictures of a run."""

from moco_keras.plotting.label_curves import few_labels
from moco_keras.plotting.pictures import curves, nearest, neighbours, views

__all__ = ["curves", "few_labels", "nearest", "neighbours", "views"]
