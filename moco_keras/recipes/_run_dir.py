"""The folder of a run: who owns it, and what may begin or resume in it."""

import contextlib
import datetime
import json
import shutil
from pathlib import Path

from moco_keras.recipes import _publishing, _record, _run_files
from moco_keras.system import ownership


@contextlib.contextmanager
def own(settings, recipe):
    """Makes the folder of a run, or takes it over, and keeps others out.

    Results that a killed process had not put in their places are put there, or
    removed if they are not complete. A folder in which nothing was trained is
    left as it was.

    Args:
        settings: `Settings`.
        recipe: name of the program.

    Yields:
        The folder, a `Path`, and whether a run is complete since its results
        were put in their places.

    Raises:
        BlockingIOError: if another process has it.
        OSError: if the folder cannot be made, or not be written to.
    """
    with contextlib.ExitStack() as stack:
        folder = _enter_folder(stack, settings, recipe)
        with _run_files.readable_write_errors(folder):
            stack.enter_context(ownership.hold(folder, "The folder of a run"))
            completed = _record.is_run(folder) and _publishing.publish(folder)
            if _record.is_run(folder):
                shutil.rmtree(folder / _publishing.PARTIAL, ignore_errors=True)
                for name in _run_files.NAMES:
                    _run_files.partial_path(folder / name).unlink(
                        missing_ok=True
                    )
                _forget_continuation(folder)
        try:
            yield folder, completed
        finally:
            trained = (folder / "history.csv").exists()
            if _record.is_free(folder) and not trained:
                _forget(folder)
            _forget_continuation(folder)


def open_folder(folder, record):
    """Begins a run in a folder of its own, or finds the one to resume.

    A run that has kept nothing yet is replaced, whatever it was.

    Args:
        folder: that of the run, see `own`.
        record: what `_record.make` returns, and then `_record.read`.

    Raises:
        FileExistsError: if the folder holds something else, or a finished run
            that has as many epochs.
        FileNotFoundError: if it holds a finished run without its checkpoint.
        OSError: if the folder cannot be written to.
        ValueError: if it holds a run with other settings or data.
    """
    after = _check(folder, record)
    if after:
        record = {**record, "continued_after_epochs": after}
    if (folder / "metrics.json").exists():
        if not (folder / _run_files.CONTINUED).exists():
            record = {
                **record,
                _record.CHECKPOINT: _record.newest_checkpoint(folder),
            }
            _run_files.write_json(folder / _run_files.CONTINUED, record)
    else:
        _run_files.write_json(folder / "settings.json", record)


def _check(folder, record):
    """Refuses a folder in which the run can neither begin nor resume.

    Returns:
        The numbers of epochs after which it was finished and then continued.
    """
    if not any(path.name != ownership.LOCK for path in folder.iterdir()):
        return []
    if not _record.is_run(folder):
        if _record.has_checkpoint(folder):
            raise FileExistsError(
                "The folder of a run must have its settings.json. Received: "
                f"{folder}, in which it is damaged or missing. Nothing was "
                "changed. Bring it back from a copy: encoder/1/encoder.json "
                "has the same under `training`. Or choose another --run_dir."
            )
        raise FileExistsError(
            "--run_dir must be a new folder, or that of a run. Received: "
            f"{folder}, which holds other files. Choose another."
        )
    if _record.is_free(folder):
        _forget(folder)
        return []
    record_before = _record.read(folder)
    before = _record.what_must_stay(record_before)
    now = _record.what_must_stay(record)
    after = list(record_before.get("continued_after_epochs", []))
    finished = (folder / "metrics.json").exists()
    if finished and not (folder / _run_files.CONTINUED).exists():
        epochs = before.pop("--epochs")
        before.pop("--minutes", None)
        minutes = now.pop("--minutes")
        _check_continues(folder, epochs, now.pop("--epochs"), minutes)
        after.append(epochs)
    changes = [
        f"{name}={now.get(name)} (it began with {before.get(name)})"
        for name in sorted(before | now)
        if before.get(name) != now.get(name)
    ]
    if changes:
        why = ""
        if now["source"] != before["source"]:
            why = (
                " Images were added, removed, renamed or changed, or these "
                "are others."
            )
        raise ValueError(
            "A run resumes with what it began with. Received, for "
            f"{folder}: {', '.join(changes)}.{why} Give the same flags and "
            "data, or choose another --run_dir."
        )
    if not finished and not _record.has_checkpoint(folder):
        raise FileExistsError(
            "A run can resume from its checkpoint, or from its metrics.json. "
            f"Received: {folder}, which holds results and neither of them. "
            "Nothing was changed. Bring them back, or choose another --run_dir."
        )
    return after


def _check_continues(folder, finished, epochs, minutes):
    """Refuses a finished run that the given number of epochs does not continue.

    Args:
        folder: of the run.
        finished: epochs that it has.
        epochs: that it is to have.
        minutes: that it may take, or None.
    """
    anew = (
        "To begin another run from its weights, give --init_from="
        f"{folder / 'model.keras'} and another --run_dir."
    )
    if epochs <= finished and minutes:
        raise FileExistsError(
            "A finished run is continued by --epochs, without --minutes. "
            f"Received: --minutes={minutes:g} and --run_dir={folder}, which "
            f"holds a run that is finished, with {finished} epochs. Nothing "
            "was changed. To continue it, give --minutes=0 and more --epochs. "
            f"{anew}"
        )
    if epochs <= finished:
        raise FileExistsError(
            "--epochs must be more than a finished run has, to continue it. "
            f"Received: --epochs={epochs} and --run_dir={folder}, which holds "
            f"a run that is finished, with {finished} epochs. Nothing was "
            f"changed. {anew}"
        )
    if not _record.has_checkpoint(folder):
        raise FileNotFoundError(
            "A finished run can be continued from its last checkpoint. "
            f"Received: {folder}, in which there is none. {anew}"
        )


def _enter_folder(stack, settings, recipe):
    """The one that is asked for, or one named after the time."""
    if settings.run_dir is not None:
        folder = Path(settings.run_dir)
        with _run_files.readable_write_errors(folder):
            stack.enter_context(ownership.made(folder))
        return folder
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{i}" for i in range(2, 100))):
        folder = Path(settings.output_dir) / recipe / (stamp + suffix)
        # Never one that another process has made.
        with (
            _run_files.readable_write_errors(folder),
            contextlib.suppress(FileExistsError),
        ):
            stack.enter_context(ownership.made(folder, exist_ok=False))
            return folder
    raise FileExistsError(f"Too many runs are called {folder.parent / stamp}.")


def _forget(folder):
    """Removes what a run writes before there is something to keep."""
    files = (
        "skipped.csv",
        "damaged.csv",
        "history.csv",
        "settings.json",
        _run_files.REPORT,
    )
    for name in files:
        with contextlib.suppress(OSError):
            (folder / name).unlink(missing_ok=True)
    for name in ("logs", "checkpoints"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _forget_continuation(folder):
    """Leaves a finished run as it was if its continuation kept nothing."""
    with contextlib.suppress(OSError, ValueError):
        record = json.loads((folder / _run_files.CONTINUED).read_text())
        if record.get(_record.CHECKPOINT) == _record.newest_checkpoint(folder):
            (folder / _run_files.CONTINUED).unlink()
