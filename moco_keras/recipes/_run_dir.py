"""The folder of a run: what it was told, what it is, and how it went."""

import contextlib
import csv
import dataclasses
import datetime
import io
import json
import shutil
from pathlib import Path

import keras

from moco_keras import distribution, export
from moco_keras.export import model_card
from moco_keras.system import ownership
from moco_keras.system.paths import printable

_PACKAGES = ("keras", "tensorflow", "tensorflow-datasets", "keras-cv", "numpy")
# What may change on the way.
_PLACES = (
    "data_dir",
    "images",
    "export_dir",
    "run_dir",
    "checkpoint_every",
    "strategy",
)
# The record of a finished run that is being continued, beside its own, which
# stays true of what the folder holds until the new results replace them.
_CONTINUED = "settings.continued.json"
# In it, the checkpoint that it continues from.
_CHECKPOINT = "continued_from_checkpoint"
# Results, until they are all there; then, until each is in its place.
_PARTIAL, _READY = ".partial", ".ready"
_PICTURES = ("curves.png", "views.png", "neighbours.png")
_FILES = (  # that `_write` makes
    "settings.json",
    _CONTINUED,
    "history.csv",
    "skipped.csv",
    "metrics.json",
    "timing.json",
)


def make(settings, recipe, images, strategy):
    """What a run is, for settings.json.

    Args:
        settings: `Settings`.
        recipe: name of the program.
        images: `_pretrain.Images`.
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


@contextlib.contextmanager
def own(settings, recipe):
    """Makes the folder of a run, or takes it over, and keeps others out.

    What a process that was killed had not put in its place there is put, or
    removed. A folder in which nothing was trained in the end is left as it was.

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
        with _writing_to(folder):
            stack.enter_context(ownership.hold(folder, "The folder of a run"))
            completed = _is_run(folder) and _publish(folder)
            if _is_run(folder):
                shutil.rmtree(folder / _PARTIAL, ignore_errors=True)
                for name in _FILES:
                    _partial_of(folder / name).unlink(missing_ok=True)
                _forget_continuation(folder)
        try:
            yield folder, completed
        finally:
            if _is_free(folder) and not (folder / "history.csv").exists():
                _forget(folder)
            _forget_continuation(folder)


def open_folder(folder, record):
    """Begins a run in a folder of its own, or finds the one that is to go on.

    A run of which nothing was kept yet is replaced, whatever it was.

    Args:
        folder: that of the run, see `own`.
        record: what `make` returns, which becomes what `begun` does.

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
        if not (folder / _CONTINUED).exists():
            record = {**record, _CHECKPOINT: _newest_checkpoint(folder)}
            write_json(folder / _CONTINUED, record)
    else:
        write_json(folder / "settings.json", record)


def begun(folder):
    """The record of the run that was begun last in a folder."""
    file = folder / _CONTINUED
    if not file.exists():
        file = folder / "settings.json"
    record = json.loads(file.read_text())
    record.pop(_CHECKPOINT, None)
    return record


def has_checkpoint(folder):
    """Whether a run in a folder has something to go on from."""
    return any(Path(folder, "checkpoints").glob("*.index"))


@contextlib.contextmanager
def results(folder):
    """Gives a folder to write the results of a run to.

    When all are written they become those of the run, in the place of those
    that it had before it was continued; its encoder is one more version. If the
    process ends on the way, `own` completes that.
    """
    place = folder / _PARTIAL
    with _writing_to(folder):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        try:
            yield place
            write_json(place / "settings.json", begun(folder))
            place.rename(folder / _READY)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        _publish(folder)


def complete(folder):
    """Ends what a process was at that was killed when it had new results.

    Raises:
        BlockingIOError: if another process is at it.
    """
    if (folder / _READY).is_dir():
        with _writing_to(folder):
            with ownership.hold(folder, "The folder of a run"):
                _publish(folder)


def _publish(folder):
    """Puts results that are all there in their places, metrics.json last.

    Returns:
        Whether there were any.
    """
    ready = folder / _READY
    if not ready.is_dir():
        return False
    versions = folder / "encoder"
    versions.mkdir(exist_ok=True)
    for version in ready.glob("encoder/*"):
        export.add_version(version, versions)
    first, last = "model.keras", "metrics.json"
    if (ready / first).exists():
        for name in _PICTURES:
            if not (ready / name).exists():  # one that could not be drawn
                (folder / name).unlink(missing_ok=True)
    files = [path for path in ready.iterdir() if path.is_file()]
    for file in sorted(files, key=lambda f: (f.name == last, f.name != first)):
        file.replace(folder / file.name)
    (folder / _CONTINUED).unlink(missing_ok=True)
    shutil.rmtree(ready)
    return True


def begun_with(folder, name):
    """A setting of the run that is to go on in a folder; None if none is."""
    folder = Path(folder)
    if not _is_run(folder) or _is_free(folder):
        return None  # `open_folder` says what is wrong
    return begun(folder)["settings"].get(name)


def write_json(path, value):
    """Writes a file as a whole."""
    _write(path, json.dumps(value, indent=2) + "\n")


def training(record, metrics):
    """What an export says of a run's training: its settings and its end.

    Args:
        record: that of settings.json.
        metrics: those of metrics.json, of which the history is left out.
    """
    last = {k: v for k, v in metrics.items() if k != "history"}
    return {**record, "metrics": last}


def write_skipped(path, skipped):
    """Writes a CSV file of (path, reason), of files that are no images.

    Where there are none there is no file, nor that of an earlier time.
    """
    if not skipped:
        path.unlink(missing_ok=True)
        return
    rows = [
        {"file": printable(path), "reason": reason} for path, reason in skipped
    ]
    _write_csv(path, rows)


def _write_csv(path, rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    _write(path, text.getvalue())


def _write(path, text):
    with _writing_to(path):
        partial = _partial_of(path)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


def _partial_of(path):
    return path.with_name(f".{path.name}.partial")


@contextlib.contextmanager
def _writing_to(path):
    try:
        yield
    except OSError as error:
        if error.errno is None:  # it has its own words
            raise
        raise OSError(
            "The folder of a run must be one that can be written to. Received, "
            f"for {path}: {error.strerror}. What it held before is as it was. "
            "Make it writable, make room, or choose another."
        ) from error


class History(keras.callbacks.Callback):
    """Keeps what the epochs logged, in `epochs` and in a CSV file.

    Keras's `CSVLogger` mixes up the columns when a training goes on.

    Args:
        path: of the file, which is read where it exists.

    Attributes:
        epochs: a dict for each.
        steps: how many this process has taken.

    Raises:
        FileNotFoundError: if a training goes on whose file is gone.
        ValueError: if the file is damaged.
    """

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.epochs, self.steps = [], 0
        if path.exists():
            try:
                with path.open(newline="") as file:
                    self.epochs = [
                        {k: _number(v) for k, v in row.items() if v}
                        for row in csv.DictReader(file)
                    ]
            except (ValueError, TypeError, AttributeError, csv.Error) as error:
                raise ValueError(
                    f"{path} must hold the epochs before, as the run wrote "
                    f"them. Received a damaged file: {error}. Bring it back "
                    "from a copy, or begin in another folder."
                ) from error

    def on_epoch_begin(self, epoch, logs=None):
        if len(self.epochs) < epoch:
            raise FileNotFoundError(
                f"{self.path} must hold the {epoch} epochs before, for "
                f"metrics.json. Received {len(self.epochs)}. Bring the file "
                "back, or begin in another folder."
            )
        self.epochs = self.epochs[:epoch]  # what a checkpoint had not seen

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append({"epoch": epoch + 1, **logs})
        _write_csv(self.path, self.epochs)


def _number(text):
    return int(text) if text.isdigit() else float(text)


def _check(folder, record):
    """Refuses a folder in which the run cannot start or go on.

    Returns:
        The numbers of epochs after which it was finished, and then continued.
    """
    if not any(path.name != ownership.LOCK for path in folder.iterdir()):
        return []
    if not _is_run(folder):
        if has_checkpoint(folder):
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
    if _is_free(folder):
        _forget(folder)
        return []
    record_before = begun(folder)
    before = _what_must_stay(record_before)
    now, after = _what_must_stay(record), []
    after += record_before.get("continued_after_epochs", [])
    finished = (folder / "metrics.json").exists()
    if finished and not (folder / _CONTINUED).exists():
        epochs = before.pop("--epochs")
        _check_continues(folder, epochs, now.pop("--epochs"))
        after.append(epochs)
    changes = [
        f"{name}={now.get(name)} (it began with {before.get(name)})"
        for name in sorted(before | now)
        if before.get(name) != now.get(name)
    ]
    if changes:
        raise ValueError(
            "A run goes on with what it began with. Received, for "
            f"{folder}: {', '.join(changes)}. Give the same flags and data, "
            "or choose another --run_dir."
        )
    if not finished and not has_checkpoint(folder):
        raise FileExistsError(
            "A run can go on from its checkpoint, or from its metrics.json. "
            f"Received: {folder}, which holds results and neither of these. "
            "Nothing was changed. Bring them back, or choose another --run_dir."
        )
    return after


def _check_continues(folder, finished, epochs):
    """Refuses a finished run that the given number of epochs does not continue.

    Args:
        folder: of the run.
        finished: epochs that it has.
        epochs: that it is to have.
    """
    anew = (
        "To begin another run from its weights, give --init_from="
        f"{folder / 'model.keras'} and another --run_dir."
    )
    if epochs <= finished:
        raise FileExistsError(
            "--epochs must be more than a finished run has, to continue it. "
            f"Received: --epochs={epochs} and --run_dir={folder}, which holds "
            f"a run that is finished, with {finished} epochs. Nothing was "
            f"changed. {anew}"
        )
    if not has_checkpoint(folder):
        raise FileNotFoundError(
            "A finished run can be continued from its last checkpoint. "
            f"Received: {folder}, in which there is none. {anew}"
        )


def _what_must_stay(record):
    settings = {
        f"--{name}": value
        for name, value in record["settings"].items()
        if name not in _PLACES
    }
    # Of a folder the digest alone: it may have been moved or renamed.
    source = str(record["data"]["source"]).rpartition(" ")[2]
    data = {**record["data"], "source": source}
    return {"recipe": record["recipe"], **data, **settings}


def _enter_folder(stack, settings, recipe):
    """The one that is asked for, or one named after the time."""
    if settings.run_dir is not None:
        folder = Path(settings.run_dir)
        with _writing_to(folder):
            stack.enter_context(ownership.made(folder))
        return folder
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{i}" for i in range(2, 100))):
        folder = Path(settings.export_dir) / recipe / (stamp + suffix)
        # Never one that another process has made.
        with _writing_to(folder), contextlib.suppress(FileExistsError):
            stack.enter_context(ownership.made(folder, exist_ok=False))
            return folder
    raise FileExistsError(f"Too many runs are called {folder.parent / stamp}.")


def _is_run(folder):
    try:
        _what_must_stay(begun(folder))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _is_free(folder):
    """Whether a folder is that of a run of which nothing was kept yet."""
    results = ("metrics.json", "model.keras", "encoder")
    return (
        _is_run(folder)
        and not has_checkpoint(folder)
        and not any((folder / name).exists() for name in results)
    )


def _forget(folder):
    """Removes what a run writes before there is something to keep."""
    for name in ("skipped.csv", "history.csv", "settings.json"):
        with contextlib.suppress(OSError):
            (folder / name).unlink(missing_ok=True)
    for name in ("logs", "checkpoints"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _newest_checkpoint(folder):
    names = [path.stem for path in folder.glob("checkpoints/*.index")]
    return max(names, default=None)


def _forget_continuation(folder):
    """Leaves a finished run as it was, where nothing of a new one was kept."""
    with contextlib.suppress(OSError, ValueError):
        record = json.loads((folder / _CONTINUED).read_text())
        if record.get(_CHECKPOINT) == _newest_checkpoint(folder):
            (folder / _CONTINUED).unlink()
