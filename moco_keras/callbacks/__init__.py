"""Callbacks that watch a training run, and those that `MoCo` adds to it."""

from moco_keras.callbacks.check_frozen import CheckFrozen
from moco_keras.callbacks.health_monitor import HealthMonitor
from moco_keras.callbacks.knn_monitor import KNNMonitor
from moco_keras.callbacks.stop_on_nan import StopOnNaN
from moco_keras.momentum import MomentumUpdate
from moco_keras.training.checkpoint import Checkpoint

__all__ = [
    "CheckFrozen",
    "Checkpoint",
    "HealthMonitor",
    "KNNMonitor",
    "MomentumUpdate",
    "StopOnNaN",
]
