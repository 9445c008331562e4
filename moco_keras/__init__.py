"""Momentum Contrast (MoCo) for Keras 3 on TensorFlow."""

import importlib
import sys

from moco_keras.system import startup  # noqa: F401 (imports TensorFlow)

# isort: split
from moco_keras import callbacks, data, optimizers, schedules
from moco_keras.evaluation import features, knn, linear_probe, protocols
from moco_keras.export import (
    FrozenEncoder,
    export_classifier,
    export_encoder,
    load_encoder,
)
from moco_keras.key_queue import KeyQueue
from moco_keras.losses import contrastive_logits, info_nce
from moco_keras.moco import MoCo
from moco_keras.models.classifier import build_classifier
from moco_keras.models.derived import backbone
from moco_keras.models.encoders import build_encoder
from moco_keras.momentum import MomentumUpdate
from moco_keras.shuffle_bn import SplitBatchNormalization
from moco_keras.training.checkpoint import Checkpoint
from moco_keras.version import __version__

# Shorter public paths, of `import moco_keras.knn`, too.
for module in (features, knn, linear_probe, protocols):
    name = module.__name__.rpartition(".")[2]
    sys.modules[f"{__name__}.{name}"] = module

__all__ = [
    "Checkpoint",
    "FrozenEncoder",
    "KeyQueue",
    "MoCo",
    "MomentumUpdate",
    "SplitBatchNormalization",
    "__version__",
    "augmentations",
    "backbone",
    "build_classifier",
    "build_encoder",
    "callbacks",
    "contrastive_logits",
    "data",
    "export_classifier",
    "export_encoder",
    "features",
    "info_nce",
    "knn",
    "linear_probe",
    "load_encoder",
    "optimizers",
    "protocols",
    "schedules",
    "textures",
]

_SLOW_TO_IMPORT = {
    "augmentations": "moco_keras.augmentations",
    "textures": "moco_keras.data.textures",
}


def __getattr__(name):
    if name in _SLOW_TO_IMPORT:
        return importlib.import_module(_SLOW_TO_IMPORT[name])
    raise AttributeError(f"module 'moco_keras' has no attribute {name!r}")
