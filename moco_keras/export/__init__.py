"""Encoders and classifiers for servers and other programs."""

from moco_keras.export.classifier import export_classifier
from moco_keras.export.encoder import export_encoder
from moco_keras.export.frozen_encoder import (
    FrozenEncoder,
    load_encoder,
    reading,
)

__all__ = [
    "FrozenEncoder",
    "export_classifier",
    "export_encoder",
    "load_encoder",
    "reading",
]
