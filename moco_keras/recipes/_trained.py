"""A trained encoder, and images with labels to evaluate it with."""

import dataclasses
from pathlib import Path

from moco_keras import data
from moco_keras.recipes import _data, _record, _settings, image_folder
from moco_keras.system import versions
from moco_keras.system.paths import printable


def check(settings):
    """Refuses settings that do not name an encoder and its images.

    Args:
        settings: with `run_dir`, or with `encoder` and `data`.

    Returns:
        The folder of the encoder's version, a `Path`.

    Raises:
        FileNotFoundError: if there is no run, or no encoder.
        ValueError: if neither is given, or both are.
    """
    if bool(settings.run_dir) == bool(settings.encoder):
        raise ValueError(
            "Either --run_dir must be given, the folder of a finished run, or "
            "--encoder and --data, an export and labeled images. Received: "
            f"--run_dir={settings.run_dir}, --encoder={settings.encoder}."
        )
    if settings.encoder and not settings.data:
        raise ValueError(
            "--data must be given with --encoder: a folder of images with a "
            "folder for each class, or a name of TensorFlow Datasets."
        )
    if settings.run_dir and not _record.is_run(Path(settings.run_dir)):
        raise FileNotFoundError(
            "--run_dir must be the folder of a finished run. Received: "
            f"{printable(settings.run_dir)}, which is not one."
        )
    flag = "run_dir" if settings.run_dir else "encoder"
    place = Path(getattr(settings, flag))
    folder = versions.find(place)
    if folder is None:
        raise FileNotFoundError(
            f"--{flag} must hold an encoder that was exported. Received: "
            f"{printable(place)}, where there is none. Finish the run, or "
            "export to it: `python -m moco_keras.recipes.export --path=FOLDER`."
        )
    return folder


def read(settings, image_size):
    """Reads the images of a run, or those that --data names.

    Args:
        settings: as in `check`, and `data_dir`.
        image_size: side of the encoder's images.

    Returns:
        `_data.Images`, whose bank and test images all have labels.

    Raises:
        ValueError: if they lack labels.
    """
    images = _read(settings, image_size)
    for image_set, what in ((images.bank, "train"), (images.test, "test")):
        if not (image_set.labelled and image_set.num_examples):
            raise ValueError(
                "Images to train and to test classifiers with must have "
                f"labels. Received: images to {what} with that have none, of "
                f"{image_set.source}. Put the images of each class into a "
                "folder of their own, and name the folder that holds these: "
                "--data=FOLDER."
            )
    return images


def _read(settings, image_size):
    if settings.data is None:
        record = _record.read(Path(settings.run_dir))
        folder = record["recipe"] == "image_folder"
        kind = image_folder.FolderSettings if folder else _settings.Settings
        given = {
            field.name: record["settings"][field.name]
            for field in dataclasses.fields(kind)
            if field.name in record["settings"]
        }
        if settings.data_dir:
            given["data_dir"] = settings.data_dir
        read = image_folder.read if folder else _data.by_name(record["recipe"])
        return read(kind(**given))
    if Path(settings.data).is_dir():
        return image_folder.read(
            image_folder.FolderSettings(
                **dict.fromkeys(_settings.FITTED) | {"image_size": image_size},
                images=settings.data,
            )
        )
    named = data.find_builder(settings.data, settings.data_dir)
    test = "test"
    if named is not None and "test" not in named.info.splits:
        test = "validation"
    bank, test = (
        data.read_named(settings.data, split, data_dir=settings.data_dir).load(
            image_size=image_size
        )
        for split in ("train", test)
    )
    return _data.Images(bank, bank, test)
