"""Accuracies with few labels: kept while they are measured, and summed up."""

import json
import math

import numpy as np

from moco_keras.recipes import _run_files

_TITLES = {
    "scratch": "from scratch",
    "probe": "frozen + probe",
    "finetuned": "fine-tuned",
}


class Kept:
    """The accuracies that were measured, in a file after each of them.

    Args:
        path: of the file, a `Path`.
        about: what they are of; a file of something else is replaced.
    """

    def __init__(self, path, about):
        self._path, self._about, self._accuracies = path, about, {}
        try:
            found = json.loads(path.read_text())
            if found["about"] == about:
                self._accuracies = {
                    (amount, method, draw): accuracy
                    for amount, method, draw, accuracy in found["accuracies"]
                }
        except (OSError, ValueError, KeyError, TypeError):
            pass  # measured again

    def __contains__(self, key):
        return key in self._accuracies

    def add(self, key, accuracy):
        """Adds that of (amount, method, draw)."""
        self._accuracies[key] = accuracy
        accuracies = [[*key, value] for key, value in self._accuracies.items()]
        _run_files.write_json(
            self._path, {"about": self._about, "accuracies": accuracies}
        )

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
                    }
                )
        return rows

    def remove(self):
        """Removes the file, when its accuracies are in another."""
        self._path.unlink(missing_ok=True)


def print_table(rows):
    """Prints the rows of few_labels.json, a line for each amount of labels."""
    draws = rows[0]["draws"]
    print(f"\nShare of test images right, mean of {draws} draws ± its error")
    print("  labels a class" + "".join(f"{x:>17}" for x in _TITLES.values()))
    by_amount = {}
    for row in rows:
        by_amount.setdefault(row["labels_per_class"], {})[row["method"]] = row
    for amount, found in by_amount.items():
        cells = [_cell(found[method]) for method in _TITLES]
        print(f"  {amount:>14}" + "".join(f"{cell:>17}" for cell in cells))


def _cell(row):
    if row["standard_error"] is None:
        return f"{row['mean']:.3f}"
    return f"{row['mean']:.3f} ± {row['standard_error']:.3f}"
