r"""Looks at your images, and advises how to train on them on this machine.

    python -m moco_keras.recipes.doctor --images=FOLDER --out=FOLDER

In two minutes at most it says how many images there are, of which sizes and
kinds, what is broken, blank, gray, or there more than once, and how large the
classes are. Then it trains for some steps, and advises settings with which the
training run takes about --minutes. It also takes --images=cifar10 and
--images=textures, the data sets that have programs of their own.

It leaves in --out: doctor.flags, with which `image_folder` trains as advised;
and doctor.json, with all numbers and the names of the images that they count.
"""

import dataclasses
import os
import tempfile
import warnings
from pathlib import Path

from moco_keras import arguments
from moco_keras.distribution import accelerators
from moco_keras.export import model_card
from moco_keras.recipes import (
    _cli,
    _doctor_advice,
    _doctor_findings,
    _doctor_look,
    _doctor_page,
    _doctor_trial,
    _run_files,
    _settings,
    _threads,
)


@dataclasses.dataclass(frozen=True)
class DoctorSettings(_settings.Bounded):
    """What the program is told."""

    images: str | None = _settings.path(
        None, "the folder of your images; or cifar10 or textures"
    )
    data_dir: str | None = _settings.path(
        None, "where TensorFlow Datasets keeps its data"
    )
    out: str | None = _settings.path(
        None, "the folder for doctor.flags and doctor.json"
    )
    minutes: float = _settings.setting(
        60.0, "how long the training run may take", arguments.POSITIVE
    )


def doctor(settings):
    """Looks, tries, advises, and leaves what it found in a folder.

    Raises:
        FileNotFoundError: if there are no such images.
        ValueError: if a flag is missing, if there is no image, or if memory has
            no room for any training run.
    """
    for name in ("images", "out"):
        if not getattr(settings, name):
            raise ValueError(f"--{name} must be given; --help says what it is.")
    if "TF_CONFIG" in os.environ:
        raise ValueError(
            "The doctor must run on one machine alone. Received: TF_CONFIG, "
            "which names several. Unset it for this command."
        )
    _threads.share_cores()
    out = Path(settings.out)
    with _run_files.readable_write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()  # before the minutes of work
    print("Looking at the images ...", flush=True)
    found = _doctor_look.at(settings.images, settings.data_dir)
    numbers = _doctor_findings.summary(found)
    _doctor_page.print_findings(found, numbers)
    (out / "doctor.flags").unlink(missing_ok=True)  # for other images
    _run_files.write_json(out / "doctor.json", {"images": numbers})
    if found.num_images < 2:
        raise ValueError(
            "There must be at least two images to try some steps of training. "
            f"Received: one image in {settings.images}. Add others."
        )
    print("\nTraining for some steps ...", flush=True)
    side = numbers["shorter_side"]["median"]
    best, wider = _doctor_advice.try_networks(found, side, settings.minutes)
    advice = _doctor_advice.of(found, best, wider, side, settings.minutes)
    steps = found.num_images // best.settings.batch_size
    cost = {
        "seconds_of_a_step": best.step_seconds,
        "seconds_of_reading_a_step": best.reading_seconds,
        "limited_by_reading": best.limited_by_reading,
        "steps_of_an_epoch": steps,
        "seconds_of_an_epoch": steps * best.step_seconds,
        "bytes_of_memory": None,
    }
    flags = out / "doctor.flags"
    report = {
        "images": numbers,
        "minutes": settings.minutes,
        "advice": {
            name: getattr(advice.settings, name) for name in advice.reasons
        },
        "reasons": advice.reasons,
        "cost": cost,
        "device": accelerators.describe(),
        "versions": model_card.versions(("keras", "tensorflow")),
    }
    _run_files.write_text(flags, _doctor_page.flag_file(found, advice))
    _run_files.write_json(out / "doctor.json", report)
    try:
        cost["bytes_of_memory"] = _doctor_trial.memory(
            found, best.settings, best.model
        )
    except (ValueError, OSError) as error:  # the advice is good without it
        warnings.warn(f"Memory was not measured: {error}", stacklevel=2)
    _run_files.write_json(out / "doctor.json", report)
    _doctor_page.print_advice(found, advice, cost, flags)


if __name__ == "__main__":
    _cli.run(DoctorSettings(), doctor)
