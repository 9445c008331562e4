"""Accuracies with few labels: kept while they are measured, and summed up."""

import json
import math

import numpy as np

from moco_keras.recipes import _run_files
from moco_keras.system.paths import printable

# What an accuracy is of, beside the settings.
_KEY = "labels_per_class", "method", "draw"
TITLES = {
    "scratch": "from scratch",
    "probe": "frozen + probe",
    "finetuned": "fine-tuned",
}


class Measured:
    """The accuracies that were measured, in a file after each of them.

    The file keeps those of other settings, too.

    Args:
        path: of the file, a `Path`.
        about: a dict of all that decides on them, beside the amount of labels,
            the method and the number of the draw.

    Raises:
        ValueError: if the file is not one of accuracies.
    """

    def __init__(self, path, about):
        self._path, self._about = path, about
        self._rows, self._accuracies = [], {}
        if path.exists():
            try:
                for row in json.loads(path.read_text()):
                    self._keep(row)
            except (
                AttributeError,
                LookupError,
                TypeError,
                ValueError,
            ) as error:
                raise ValueError(
                    "The file of accuracies must be as it was written. "
                    f"Received: {printable(path)}, which cannot be read. "
                    "Remove it to measure them again, or choose another --out."
                ) from error

    def __contains__(self, key):
        return key in self._accuracies

    def add(self, key, accuracy):
        """Adds that of (amount, method, draw)."""
        row = dict(zip(_KEY, key, strict=True))
        self._keep({**self._about, **row, "accuracy": accuracy})
        _run_files.write_json(self._path, self._rows)

    def _keep(self, row):
        about = {k: v for k, v in row.items() if k not in (*_KEY, "accuracy")}
        key, accuracy = tuple(row[name] for name in _KEY), row["accuracy"]
        if about == self._about:
            self._accuracies[key] = accuracy
        self._rows.append(row)

    def summary(self, amounts, methods, draws):
        """The rows of few_labels.json."""
        rows = []
        for amount in amounts:
            for method in methods:
                found = [
                    self._accuracies[amount, method, draw]
                    for draw in range(draws)
                ]
                error = None
                if draws > 1:
                    error = float(np.std(found, ddof=1)) / math.sqrt(draws)
                rows.append(
                    {
                        "labels_per_class": amount,
                        "method": method,
                        "mean": float(np.mean(found)),
                        "standard_error": error,
                        "draws": draws,
                        "encoder": self._about.get("encoder"),
                    }
                )
        return rows


def print_table(rows):
    """Prints the rows of few_labels.json, a line for each amount of labels."""
    draws = rows[0]["draws"]
    print(f"\nShare of test images right, mean of {draws} draws ± its error")
    print("  labels a class" + "".join(f"{x:>17}" for x in TITLES.values()))
    by_amount = {}
    for row in rows:
        by_amount.setdefault(row["labels_per_class"], {})[row["method"]] = row
    for amount, found in by_amount.items():
        cells = [cell(found[method]) for method in TITLES]
        print(f"  {amount:>14}" + "".join(f"{cell:>17}" for cell in cells))


def cell(row):
    """A row of few_labels.json as text."""
    if row["standard_error"] is None:
        return f"{row['mean']:.3f}"
    return f"{row['mean']:.3f} ± {row['standard_error']:.3f}"
