"""Files of a run, which are written as a whole or not at all."""

import contextlib
import csv
import io
import json
import sys

from moco_keras.system import paths
from moco_keras.system.paths import printable

# The record of a finished run that is being continued, beside its own, which
# stays true of what the folder holds until the new results replace them.
CONTINUED = "settings.continued.json"
REPORT = "report.html"
MAP = "map.json"  # what `plotting.embedding_map` returned
NAMES = (
    "settings.json",
    CONTINUED,
    "history.csv",
    "skipped.csv",
    "damaged.csv",
    "metrics.json",
    "timing.json",
)


HOW_TO_RESUME = "To resume, give the same command again."


@contextlib.contextmanager
def resumable():
    """Says how to resume what a signal ends."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        print(f"\n{HOW_TO_RESUME}", file=sys.stderr)
        raise


def write_json(path, value):
    """Writes a JSON file."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_skipped(path, skipped):
    """Writes a CSV file of pairs (path, reason), of files that are not images.

    Without any, a file of an earlier time is removed.
    """
    if not skipped:
        path.unlink(missing_ok=True)
        return
    rows = [
        {"file": printable(path), "reason": reason} for path, reason in skipped
    ]
    write_csv(path, rows)


def keep_damaged(path, damaged):
    """Lists damaged images as they are met, beside those met before a resume.

    Args:
        path: of the CSV file, which the first damaged image begins.
        damaged: `Damaged` of a folder, or None.
    """
    if damaged is None:
        return
    listed = names_of_damaged(path)

    def add(image, reason):
        name = printable(image)
        if name in listed:
            return
        listed.add(name)
        try:
            is_new = not path.exists() or not path.stat().st_size
            with path.open("a", newline="", encoding="utf-8") as file:
                rows = csv.writer(file)
                rows.writerows([["file", "reason"]] * is_new)
                rows.writerow([name, reason])
        except OSError as error:  # the run is worth more than its list
            print(f"{printable(path)} cannot be written: {error}")

    def tell(image, reason):
        print(f"\nDamaged, and skipped: {printable(image)}: {reason}")
        add(image, reason)

    damaged.tell = tell
    for image, reason in list(damaged.found.items()):
        add(image, reason)


def names_of_damaged(path):
    """The images that a list of damaged ones names, a set; of no list empty."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row.get("file") for row in csv.DictReader(file)}
    except FileNotFoundError:
        return set()


def write_csv(path, rows):
    """Writes a CSV file of dicts; what one of them lacks stays empty."""
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(columns))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_text(path, text):
    """Writes a text file."""
    with readable_write_errors(path):
        partial = partial_path(path)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


def partial_path(path):
    """Where a file is until it is whole."""
    return path.with_name(f".{path.name}.partial")


def readable_write_errors(path):
    """Has errors of writing results say what to do."""
    return paths.readable_write_errors(
        path,
        "The folder of the results must be one that can be written to. "
        "Received, for {place}: {reason}. What it held before is as it was. "
        "Make it writable, make room, or choose another.",
    )
