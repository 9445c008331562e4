"""Whether a run was a success, in words."""

import math

_CLEAR = 2  # standard errors of a difference, beyond which it is no chance
_ALIKE = 0.95  # mean similarity of images, above which nearly all are alike


def of_run(metrics, num_tests):
    """What a finished run has reached, and what to change.

    Args:
        metrics: of metrics.json, without the verdict.
        num_tests: how many images tested it.

    Returns:
        A list of sentences.
    """
    alarms = metrics.get("health", {}).get("alarms", [])
    history = metrics["history"]
    said = []
    better = False
    if "knn_trained" in metrics:
        sentence, better = _compared(metrics, num_tests)
        said.append(sentence)
        trend, rising = _trend(history, num_tests)
        said.append(trend)
    else:
        rising = False
        said.append(_without_labels(metrics))
    said += _alikeness(history)
    if alarms:
        kinds = ", ".join(alarm["kind"] for alarm in alarms)
        said.append(f"Alarms: {kinds}. {alarms[0]['text']}")
    elif rising:
        said.append(
            f"No alarm. Train longer: --epochs={2 * len(history)} with the "
            "--run_dir of this run continues it."
        )
    elif better or "knn_trained" not in metrics:
        said.append("No alarm.")
    else:
        said.append(
            "No alarm, but little was learned: train longer, on more images, "
            "or with views that keep what tells your classes apart (color, "
            "orientation, small details)."
        )
    return said


def standard_error(accuracy, num_tests):
    """That of an accuracy on so many independent images."""
    return math.sqrt(accuracy * (1 - accuracy) / num_tests)


def _is_clear(a, b, num_tests):
    """Whether the difference of two accuracies is more than chance."""
    errors = (standard_error(x, num_tests) for x in (a, b))
    return abs(a - b) > _CLEAR * math.hypot(*errors)


def _compared(metrics, num_tests):
    """A sentence on the final kNN, and whether it is better than before."""
    trained = metrics["knn_trained"]
    words = []
    for name, what in (
        ("raw_pixels", "raw pixels"),
        ("untrained", "the untrained encoder"),
    ):
        other = metrics[f"knn_{name}"]
        how = "as good as"
        if _is_clear(trained, other, num_tests):
            how = "better than" if trained > other else "worse than"
        words.append(f"{how} {what} ({_accuracy(other, num_tests)})")
    better = all(w.startswith("better") for w in words)
    return (
        f"By its nearest neighbors, {_accuracy(trained, num_tests)} of the "
        f"{num_tests:,} test images are classified right: "
        f"{words[0]}, and {words[1]}."
    ), better


def _trend(history, num_tests):
    """A sentence on kNN by epoch, and whether it still rises."""
    known = [(row["epoch"], row["knn"]) for row in history if "knn" in row]
    last_epoch, last = known[-1]
    epoch, best = max(known, key=lambda pair: pair[1])
    if len(known) < 3:
        return f"It was measured {len(known)} times, too few for a trend.", True
    if _is_clear(best, last, num_tests):
        return (
            f"It is past its best: {_accuracy(best, num_tests)} in epoch "
            f"{epoch}. Fewer --epochs, or a lower --learning_rate, may end "
            "higher."
        ), False
    before = next(x for e, x in reversed(known) if e <= 0.75 * last_epoch)
    if last > before and _is_clear(last, before, num_tests):
        return f"It was still rising at the end, in epoch {last_epoch}.", True
    return (
        f"It was level at the end; its best was {best:.3f}, in epoch {epoch}."
    ), False


def _without_labels(metrics):
    losses = [row["loss"] for row in metrics["history"]]
    return (
        "There are no labels to test with, so that only the loss says what was "
        f"learned: it was {max(losses):.2f} at most and {losses[-1]:.2f} at "
        "the end."
    )


def _alikeness(history):
    name = "health_similarity_features"
    values = [row[name] for row in history if name in row]
    if not values:
        return []
    sentence = (
        "The features of different images have a mean cosine similarity of "
        f"{values[-1]:.2f}"
    )
    if values[-1] > _ALIKE:
        return [
            sentence + ": nearly all point in one direction. Subtract their "
            "mean before you compare them."
        ]
    return [sentence + "."]


def _accuracy(value, num_tests):
    return f"{value:.3f} ± {standard_error(value, num_tests):.3f}"
