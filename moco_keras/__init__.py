"""Momentum Contrast (MoCo) for Keras 3 on TensorFlow."""

import importlib

from moco_keras import startup  # noqa: F401 (imports TensorFlow)

# isort: split
from moco_keras import (
    callbacks,
    data,
    features,
    knn,
    optimizers,
    schedules,
)
from moco_keras.checkpoint import Checkpoint
from moco_keras.encoders import backbone, build_encoder
from moco_keras.export import FrozenEncoder, export_encoder, load_encoder
from moco_keras.key_queue import KeyQueue
from moco_keras.losses import contrastive_logits, info_nce
from moco_keras.moco import MoCo
from moco_keras.momentum import MomentumUpdate
from moco_keras.shuffle_bn import SplitBatchNormalization

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "FrozenEncoder",
    "KeyQueue",
    "MoCo",
    "MomentumUpdate",
    "SplitBatchNormalization",
    "augmentations",
    "backbone",
    "build_encoder",
    "callbacks",
    "contrastive_logits",
    "data",
    "export_encoder",
    "features",
    "info_nce",
    "knn",
    "load_encoder",
    "optimizers",
    "schedules",
]


def __getattr__(name):
    # When somebody asks, for it takes long to import.
    if name == "augmentations":
        return importlib.import_module("moco_keras.augmentations")
    raise AttributeError(f"module 'moco_keras' has no attribute {name!r}")
