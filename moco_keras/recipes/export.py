"""Exports an encoder that was trained, for servers and for others.

    python -m moco_keras.recipes.export --model=saved_models/textures/TIME
    python -m moco_keras.recipes.export --model=mine.keras --path=FOLDER

A run has exported its backbone already; this exports it again as something
else: with its projection head, with embeddings of length 1, or for ONNX Runtime
or LiteRT too.
"""

import dataclasses
import json
import sys
from pathlib import Path

import moco_keras
from moco_keras import arguments
from moco_keras.models import model_files
from moco_keras.recipes import (
    _cli,
    _publishing,
    _record,
    _settings,
)
from moco_keras.system.paths import printable


@dataclasses.dataclass(frozen=True)
class ExportSettings(_settings.Bounded):
    """What an export is told."""

    model: str | None = _settings.path(
        None,
        "folder of a finished run, or a .keras file, of a MoCo or an encoder",
    )
    path: str | None = _settings.path(
        None, "folder of all versions; by default the run's own, encoder"
    )
    version: int | None = _settings.setting(
        None, "number of this one; by default the next", arguments.VERSION
    )
    output: str = _settings.setting(
        "features",
        "what an embedding is: the features of the backbone, or the projection "
        "that the loss compares",
        choices=("features", "projection"),
    )
    normalize: bool = _settings.setting(
        False, "divide each embedding by its length"
    )
    format: str | None = _settings.setting(
        None,
        "for which other runtime to write it too; onnx needs .[onnx]",
        choices=("onnx", "litert"),
    )


def export(settings):
    """Writes a version, with what the run's folder says of the training."""
    if settings.model is None:
        raise ValueError(
            "--model must be given: the folder of a run, or a .keras file."
        )
    given, path = Path(settings.model), settings.path
    _publishing.complete(given)
    file = given / "model.keras" if given.is_dir() else given
    if not file.is_file():
        raise FileNotFoundError(
            "--model must be the folder of a finished run, or a .keras file. "
            f"Received: --model={printable(given)}; there is no file "
            f"{printable(file)}."
        )
    if path is None and given is file:
        raise ValueError(
            "--path must be given for a --model that is a file: the folder of "
            f"all versions. Received: --model={printable(given)}."
        )
    training = None
    if given is not file:
        training = _training(given)
    folder = moco_keras.export_encoder(
        model_files.load(file, "--model"),
        path or given / "encoder",
        settings.version,
        output=settings.output,
        normalize=settings.normalize,
        format=settings.format,
        training=training,
    )
    print(f"The encoder is in {printable(folder)}")


def _training(folder):
    """What the folder of a run says of it; what is missing is named."""
    parts = []
    for name in ("settings.json", "metrics.json"):
        try:
            parts.append(json.loads((folder / name).read_text()))
        except (OSError, ValueError) as error:
            print(
                f"Warning: the export says less of its training: {name} of "
                f"{printable(folder)} cannot be read: {error}",
                file=sys.stderr,
            )
            parts.append({})
    return _record.training_summary(*parts)


if __name__ == "__main__":
    _cli.run(ExportSettings(), export)
