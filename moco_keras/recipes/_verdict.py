"""Whether a run was a success, in words."""

import math

_CLEAR = 2  # standard errors of a difference, beyond which it is no chance
_FEW = 100  # test images
_ALIKE = 0.95  # mean similarity of images, above which nearly all are alike


def of_run(metrics, num_tests, minutes=None):
    """What a finished run has reached, and what to change.

    Args:
        metrics: of metrics.json, without the verdict.
        num_tests: how many images tested it.
        minutes: that it was told to take, or None.

    Returns:
        A list of sentences.
    """
    history = metrics["history"]
    better = rising = None
    if "knn_trained" in metrics:
        compared, better = _compared(metrics, num_tests)
        trend, rising = _trend(history, num_tests, minutes)
        said = [compared, trend]
    else:
        said = [
            "There are no labels to test with. The loss was "
            f"{history[-1]['loss']:.2f} at the end."
        ]
    said += _alikeness(history)
    if "health" not in metrics:
        return [*said, "Its health was not measured."]
    alarms = metrics["health"]["alarms"]
    if alarms:
        kinds = ", ".join(alarm["kind"] for alarm in alarms)
        # An illness of the run is graver than one of its images.
        gravest = next((x for x in alarms if x["epoch"]), alarms[0])
        return [*said, f"Alarms: {kinds}. {gravest['text']}"]
    advice = "No alarm."
    if num_tests < _FEW and "knn_trained" in metrics:
        advice += f" {num_tests} test images are too few to tell much."
    elif rising:
        flags = "--minutes=0 " * bool(minutes) + f"--epochs={2 * len(history)}"
        advice += (
            f" Train longer: {flags} with the --run_dir of this run continues "
            "it."
        )
    elif better is False:
        advice += (
            " But little was learned: train longer, on more images, or with "
            "views that keep what tells your classes apart (color, "
            "orientation, small details)."
        )
    return [*said, advice]


def standard_error(accuracy, num_tests):
    """That of an accuracy on so many independent images.

    One right and one wrong are added, so that it is not 0 where all are right,
    or none (Laplace's rule of succession).
    """
    p = (accuracy * num_tests + 1) / (num_tests + 2)
    return math.sqrt(p * (1 - p) / num_tests)


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


def _trend(history, num_tests, minutes):
    """A sentence on kNN by epoch, and whether it still rises, if known."""
    known = [(row["epoch"], row["knn"]) for row in history if "knn" in row]
    last_epoch, last = known[-1]
    epoch, best = max(known, key=lambda pair: pair[1])
    if len(known) < 3:
        return "It was measured too seldom for a trend.", None
    if _is_clear(best, last, num_tests):
        time = "minutes" if minutes else "epochs"
        return (
            f"It is past its best: {_accuracy(best, num_tests)} in epoch "
            f"{epoch}. Fewer --{time}, or a lower --learning_rate, may end "
            "higher."
        ), False
    before = next(x for e, x in reversed(known) if e <= 0.75 * last_epoch)
    if last > before and _is_clear(last, before, num_tests):
        return f"It was still rising at the end, in epoch {last_epoch}.", True
    return (
        f"It was level at the end; its best was {best:.3f}, in epoch {epoch}."
    ), False


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
