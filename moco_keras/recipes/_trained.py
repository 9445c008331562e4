"""A trained encoder, and images with labels to evaluate it with."""

from pathlib import Path

from moco_keras import pixel_format
from moco_keras.distribution import accelerators
from moco_keras.models import model_files, model_state
from moco_keras.recipes import _labeled_data, _record
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


def load(file):
    """Loads an encoder, to train it further or to compute its features.

    One in bfloat16 becomes one in float32 where the device has no units for
    bfloat16, and would take several times as long.

    Args:
        file: a `Path`, of a .keras file that holds a `MoCo` or an encoder.

    Raises:
        FileNotFoundError, ValueError: as `model_files.load`.
    """
    model = model_files.load(file, "--encoder")
    encoder = getattr(model, "query_encoder", model)
    if accelerators.default_precision() == "float32" and (
        model_state.computes_in(encoder, "bfloat16")
    ):
        return model_state.with_float32(encoder)
    return encoder


def read(settings, pixels=pixel_format.RGB):
    """Opens the images of a run, or those that --data names.

    Args:
        settings: as in `check`, and `data_dir`.
        pixels: what the encoder takes, a `PixelFormat`.

    Returns:
        Two `data.ImageStream`s whose images all have labels, which are known,
        to train and to test classifiers with. Without a split to test with, a
        tenth of each class is held out.

    Raises:
        FileNotFoundError: if there are no images.
        ValueError: if they lack labels, or are of one class.
    """
    required = "test", "validation"
    if settings.data is None:
        record = _record.read(Path(settings.run_dir))
        recipe, told = record["recipe"], record["settings"]
        if recipe == "image_folder":
            folder = told.get("labelled") or told["images"]
            splits, held_out = _labeled_data.of_folder(
                folder, required, pixels=pixels
            )
        else:
            examples = {x: told[f"{x}_examples"] for x in ("train", "test")}
            if told.get("split", "train") != "train":
                examples["train"] = None
            splits, held_out = _labeled_data.of_name(
                told["name"] if recipe == "dataset" else recipe,
                required,
                data_dir=settings.data_dir or told.get("data_dir"),
                examples=examples,
                pixels=pixels,
            )
    elif Path(settings.data).is_dir():
        splits, held_out = _labeled_data.of_folder(
            settings.data, required, pixels=pixels
        )
    else:
        splits, held_out = _labeled_data.of_name(
            settings.data,
            required,
            data_dir=settings.data_dir,
            pixels=pixels,
        )
    splits = {k: _labeled_data.with_labels(v) for k, v in splits.items()}
    _labeled_data.check_classes(splits)
    name = "test" if "test" in splits else "validation"
    about = "held out of the others, a tenth" if held_out else f"of {name}"
    print(
        f"Labels are drawn from {splits['train'].num_examples:,} images, and "
        f"{splits[name].num_examples:,} test: {about}"
    )
    return splits["train"], splits[name]
