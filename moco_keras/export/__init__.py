"""Encoders for servers and other programs, exported and loaded."""

from moco_keras.export.frozen_encoder import (
    FrozenEncoder,
    load_encoder,
    reading,
)
from moco_keras.export.saved_model import export_encoder
from moco_keras.export.versions import add_version

__all__ = [
    "FrozenEncoder",
    "add_version",
    "export_encoder",
    "load_encoder",
    "reading",
]
