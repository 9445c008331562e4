"""See `knn_monitor`."""

from moco_keras.callbacks.knn_monitor import KNNMonitor, StopOnNaN

__all__ = ["KNNMonitor", "StopOnNaN"]
