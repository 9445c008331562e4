"""Encoders for servers and other programs, exported and loaded."""

from moco_keras.export.frozen_encoder import (
    FrozenEncoder,
    load_encoder,
    reading,
)
from moco_keras.export.saved_model import export_encoder

__all__ = [
    "FrozenEncoder",
    "export_encoder",
    "load_encoder",
    "reading",
]
