"""The page of a run, from what is in its folder."""

import json
import shlex

from moco_keras import plotting
from moco_keras.evaluation import alarms
from moco_keras.recipes import (
    _few_labels_results,
    _health,
    _history,
    _record,
    _report_pictures,
    _run_files,
    _verdict,
)
from moco_keras.system import versions
from moco_keras.system.paths import printable

_COLUMNS = "epoch", "loss", "contrastive_accuracy", "knn", "knn_projection"


def write(folder, path, place=None):
    """Writes the page.

    Args:
        folder: of the run, a `Path`, finished or not.
        path: of the HTML file.
        place: where the results are, if they are not in the folder yet.

    Raises:
        ValueError: if a file of the run is damaged.
    """
    record, metrics = _record.read(folder), None
    is_continued = place is None and (folder / _run_files.CONTINUED).exists()
    place = place or folder
    if not is_continued:
        metrics = _json(place / "metrics.json")
    if metrics is None:
        epochs = _history.History(folder / "history.csv").epochs
    else:
        epochs = metrics["history"]
    setup = _health.setup_of(record, epochs)
    if metrics and "health" in metrics:
        found = [alarms.Alarm(**x) for x in metrics["health"]["alarms"]]
    else:
        found = alarms.find(setup, epochs)
    timing = _json(place / "timing.json")
    columns = [c for c in _COLUMNS if any(c in row for row in epochs)]
    plotting.report(
        path,
        title=f"{record['recipe']}, {printable(folder.resolve().name)}",
        summary=_summary(record, metrics, epochs, timing),
        alarms=found,
        pictures=_report_pictures.of_run(place, metrics, epochs, setup, found),
        map=metrics and _json(place / _run_files.MAP),
        few_labels=metrics and _few_labels(folder, place),
        use=_use(folder, record, metrics, found),
        columns=columns,
        epochs=[[_short(row.get(c)) for c in columns] for row in epochs],
        settings=_settings(record),
    )


def _json(path):
    return json.loads(path.read_text()) if path.exists() else None


def _summary(record, metrics, epochs, timing):
    """What was trained on what, how far it is, and how well it does."""
    told, about = record["settings"], record["data"]
    done = len(epochs)
    minutes = ""
    if metrics and timing:
        minutes = f" in {timing['seconds'] / 60:.1f} minutes"
    plural = "" if done == 1 else "s"
    trained = (
        f"MoCo trained a {told['backbone']} of width {told['width']} on "
        f"{about['train_images']:,} images of {printable(about['source'])}, "
        f"without labels, for {done:,} epoch{plural}{minutes}. Device: "
        f"{record['device']}."
    )
    if metrics is None:
        return [
            trained,
            f"The run is not finished: {done:,} of {told['epochs']:,} epochs "
            "are done. Write this page again to see more.",
        ]
    verdict = metrics.get("verdict")
    return [
        trained,
        *(
            verdict
            or _verdict.of_run(
                metrics, about["test_images"], told.get("minutes")
            )
        ),
    ]


def _few_labels(folder, place):
    """The rows of few_labels.json that are of the newest encoder."""
    version = versions.find(place)
    if version is None:
        return []
    weights = _json(version / "encoder.json")["weights"]["sha256"]
    return [
        {
            "amount": row["labels_per_class"],
            "method": _few_labels_results.TITLES[row["method"]],
            "accuracy": _few_labels_results.cell(row),
        }
        for row in _json(folder / "few_labels.json") or []
        if row.get("encoder") == weights
    ]


def _use(folder, record, metrics, found):
    """How to use what is there: pairs of a sentence and commands."""
    where = shlex.quote(str(folder))
    if metrics is None:
        stopped = bool(found) and record["settings"].get("on_alarm") == "stop"
        return [
            (
                "To resume the run after an interruption, give its command "
                "again, with this flag:",
                f"--run_dir={where}" + " --on_alarm=warn" * stopped,
            )
        ]
    encoder = str(folder / "encoder")
    quoted = shlex.quote(encoder)
    return [
        (
            "In Python, with Keras:",
            "import moco_keras\n\n"
            f"encoder = moco_keras.load_encoder({encoder!r})\n"
            "embeddings = encoder(images)  # (N, H, W, C)",
        ),
        (
            "For TensorFlow Serving, its folder of versions is:",
            encoder,
        ),
        (
            "To embed a folder of images, and to see what a few labels buy:",
            f"python -m moco_keras.recipes.embed --encoder={quoted} "
            "--images=FOLDER --out=features.npz\n"
            f"python -m moco_keras.recipes.few_labels --run_dir={where}",
        ),
    ]


def _settings(record):
    """Pairs of names and values."""
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    return [
        *(
            (f"--{name}", printable(str(value)))
            for name, value in record["settings"].items()
            if value is not None
        ),
        ("versions", versions),
        ("device", record["device"]),
    ]


def _short(value):
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4g}"
