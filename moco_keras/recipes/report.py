"""Writes the page of a run, report.html, during the run or afterwards.

    python -m moco_keras.recipes.report --run_dir=saved_models/textures/TIME

The page is one file, which any browser opens, without a network: what was
trained on what and how well it does, curves, health and alarms, views,
neighbors, a map of the test images, what few labels buy if that was measured,
settings, and how to load the encoder. A finished run has written it already;
this program writes it again, with what was added to the folder since.
"""

import dataclasses
from pathlib import Path

from moco_keras.recipes import (
    _cli,
    _record,
    _report,
    _run_files,
    _settings,
)
from moco_keras.system import ownership
from moco_keras.system.paths import printable


@dataclasses.dataclass(frozen=True)
class ReportSettings(_settings.Bounded):
    """What the program is told."""

    run_dir: str | None = _settings.path(None, "the folder of a run")


def report(settings):
    """Writes the page, and prints where it is.

    Raises:
        FileNotFoundError: if there is no run.
        ValueError: if a file of the run is damaged.
    """
    if not settings.run_dir:
        raise ValueError("--run_dir must be given: the folder of a run.")
    folder = Path(settings.run_dir)
    if not _record.is_run(folder):
        raise FileNotFoundError(
            "--run_dir must be the folder of a run. Received: "
            f"{printable(folder)}, which has no settings.json of one."
        )
    path = folder / _run_files.REPORT
    with (
        _run_files.readable_write_errors(path),
        ownership.scratch(folder) as place,
    ):
        _report.write(folder, place / path.name)
        (place / path.name).replace(path)
    print(f"The page of the run is {printable(path)}")


if __name__ == "__main__":
    _cli.run(ReportSettings(), report)
