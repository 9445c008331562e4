"""The record of a run, settings.json: what it was told and what it is."""

import dataclasses
import json
from pathlib import Path

from moco_keras import distribution, keras_private
from moco_keras.export import model_card
from moco_keras.recipes._run_files import CONTINUED

_CHECKPOINTS = f"*{keras_private.CHECKPOINT_INDEX}"
_PACKAGES = ("keras", "tensorflow", "tensorflow-datasets", "keras-cv", "numpy")
# In the record of a finished run that is being continued, the checkpoint from
# which it is.
CHECKPOINT = "continued_from_checkpoint"
# Settings with which a run need not have begun to be resumed.
_MAY_CHANGE = (
    "data_dir",
    "images",
    "labelled",
    "output_dir",
    "run_dir",
    "checkpoint_every",
    "on_alarm",
    "strategy",
)
# Folders of this machine, which exports leave.
_PLACES = ("data_dir", "output_dir", "run_dir", "out")
# What settings were called in records of earlier versions.
_RENAMED = {"encoder": "backbone", "export_dir": "output_dir"}
# What they did not have yet.
_ADDED = {"channels": 3, "turns": False}


def make(settings, recipe, images, strategy):
    """What a run is, for settings.json.

    Args:
        settings: `Settings`.
        recipe: name of the program.
        images: `_data.Images`.
        strategy: whose devices share each step.
    """
    return {
        "recipe": recipe,
        "settings": dataclasses.asdict(settings),
        "versions": model_card.versions(_PACKAGES),
        "device": distribution.describe(strategy),
        "replicas": strategy.num_replicas_in_sync,
        "data": {
            "source": images.train.source,
            "train_images": images.train.num_examples,
            "test_images": images.test.num_examples,
            "image_shape": list(images.test.images.shape[1:]),
            "classes": images.test.class_names,
        },
    }


def read(folder):
    """The record of the run that was begun last in a folder."""
    file = folder / CONTINUED
    if not file.exists():
        file = folder / "settings.json"
    record = json.loads(file.read_text())
    record.pop(CHECKPOINT, None)
    settings = record.get("settings", {})
    for before, now in _RENAMED.items():
        if before in settings:
            settings[now] = settings.pop(before)
    return record


def recorded_setting(folder, name):
    """A setting of the run that resumes in a folder, or None."""
    folder = Path(folder)
    if not is_run(folder) or is_free(folder):
        return None  # `open_folder` says what is wrong
    return read(folder)["settings"].get(name)


def training_summary(record, metrics):
    """What an export says of how its encoder was trained.

    Args:
        record: that of settings.json.
        metrics: those of metrics.json, whose history is left out.
    """
    summary = {**record}
    if "settings" in record:
        summary["settings"] = without_places(record["settings"])
    last = {k: v for k, v in metrics.items() if k != "history"}
    return {**summary, "metrics": last}


def without_places(settings):
    """Settings for the record of an export: no folder where a run kept files.

    Args:
        settings: a dict by name.
    """
    return {k: v for k, v in settings.items() if k not in _PLACES}


def what_must_stay(record):
    """What a run must have in common with the one that it resumes, a dict."""
    settings = {
        f"--{name}": value
        for name, value in {**_ADDED, **record["settings"]}.items()
        if name not in _MAY_CHANGE
    }
    # Of a folder the digest alone: it may have been moved or renamed.
    source = str(record["data"]["source"]).rpartition(" ")[2]
    data = {**record["data"], "source": source}
    return {"recipe": record["recipe"], **data, **settings}


def is_run(folder):
    """Whether a folder has the record of a run."""
    try:
        what_must_stay(read(folder))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def is_free(folder):
    """Whether a folder is that of a run that has kept nothing yet."""
    results = ("metrics.json", "model.keras", "encoder")
    return (
        is_run(folder)
        and not has_checkpoint(folder)
        and not any((folder / name).exists() for name in results)
    )


def has_checkpoint(folder):
    """Whether a run in a folder has a checkpoint to resume from."""
    return any(Path(folder, "checkpoints").glob(_CHECKPOINTS))


def is_resumed(settings):
    """Whether settings name a run that has a checkpoint, and must agree."""
    return bool(settings.run_dir) and has_checkpoint(settings.run_dir)


def newest_checkpoint(folder):
    """The name of the newest checkpoint, or None."""
    paths = Path(folder, "checkpoints").glob(_CHECKPOINTS)
    names = [path.stem for path in paths]
    return max(names, default=None)
