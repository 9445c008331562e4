"""Pictures of a run."""

from moco_keras.plotting.pictures import curves, nearest, neighbours, views

__all__ = ["curves", "nearest", "neighbours", "views"]
