"""See `saved_model`."""

from moco_keras.export.saved_model import (
    FrozenEncoder,
    add_version,
    export_encoder,
    load_encoder,
    reading,
)

__all__ = [
    "FrozenEncoder",
    "add_version",
    "export_encoder",
    "load_encoder",
    "reading",
]
