"""Reading .keras files, which may be damaged or something else."""

import zipfile
from pathlib import Path

import keras

from moco_keras.system.paths import printable


def load(path, name):
    """Loads a model, not compiled, of which every byte is as it was written.

    Args:
        path: of a .keras file.
        name: of the flag or argument that it was given by, for messages.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or holds something else.
    """
    shown = name if name.startswith("--") else f"`{name}`"
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{shown} must be a .keras file that exists, such as the "
            f"model.keras of a run. Received: {name}={printable(path)}."
        )
    reason = _damage(path)
    if reason:
        raise ValueError(
            f"{shown} must be a .keras file, as Keras wrote it. Received: "
            f"{printable(path)}, which is damaged or something else: {reason}. "
            "Bring it back from a copy." + _how_to_make_again(Path(path))
        )
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras's own are of many kinds
        lines = str(error).strip().splitlines() or [repr(error)]
        raise ValueError(
            f"{shown} must be a .keras file that Keras can load, such as the "
            f"model.keras of a run. Received: {printable(path)}: {lines[0]} "
            "Bring it back from a copy if it was loaded before."
        ) from error


def _how_to_make_again(path):
    if not path.with_name("settings.json").exists():  # not that of a run
        return ""
    return (
        " To have the run make its model.keras again from its checkpoint, move "
        "its metrics.json and model.keras elsewhere, and give its command "
        "again."
    )


def _damage(path):
    """What is wrong with the bytes of a file, or None.

    Keras may read it in parts, of which newer versions of Python check no sums.
    """
    try:
        with zipfile.ZipFile(path) as file:
            part = file.testzip()
    # A damaged header asks for a password, or for another compression.
    except Exception as error:
        return str(error) or repr(error)
    return part and f"{part} does not have its checksum"
