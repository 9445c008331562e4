"""Putting the results of a run in their places: all of them, or none."""

import contextlib
import shutil

from moco_keras.recipes import _record, _run_files
from moco_keras.system import ownership, versions

# Results, until they are all there; then, until each is in its place.
PARTIAL, _READY = ".partial", ".ready"
_PICTURES = (
    "curves.png",
    "health.png",
    "views.png",
    "neighbours.png",
    _run_files.MAP,
    _run_files.REPORT,
)


@contextlib.contextmanager
def results(folder):
    """Gives a folder to write the results of a run to.

    When all are written they replace those that the run had before it was
    continued, except that its encoder is one more version. If the process ends
    on the way, `_run_dir.own` completes that.
    """
    place = folder / PARTIAL
    with _run_files.readable_write_errors(folder):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        try:
            yield place
            _run_files.write_json(place / "settings.json", _record.read(folder))
            place.rename(folder / _READY)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        publish(folder)


def complete(folder):
    """Publishes results whose process was killed on the way.

    Raises:
        BlockingIOError: if another process owns the folder.
    """
    if (folder / _READY).is_dir():
        with _run_files.readable_write_errors(folder):
            with ownership.hold(folder, "The folder of a run"):
                publish(folder)


def publish(folder):
    """Puts complete results in their places, metrics.json last.

    Returns:
        Whether there were any.
    """
    ready = folder / _READY
    if not ready.is_dir():
        return False
    place = folder / "encoder"
    place.mkdir(exist_ok=True)
    for version in ready.glob("encoder/*"):
        versions.add_version(version, place)
    first, last = "model.keras", "metrics.json"
    if (ready / first).exists():
        for name in _PICTURES:
            if not (ready / name).exists():  # one that could not be drawn
                (folder / name).unlink(missing_ok=True)
    files = [path for path in ready.iterdir() if path.is_file()]
    for file in sorted(files, key=lambda f: (f.name == last, f.name != first)):
        file.replace(folder / file.name)
    (folder / _run_files.CONTINUED).unlink(missing_ok=True)
    shutil.rmtree(ready)
    return True
