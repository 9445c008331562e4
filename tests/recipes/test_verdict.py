"""A run is judged in words, by its numbers and their errors."""

import math

import pytest

from moco_keras.recipes import _verdict


def history(*knn, similarity=0.4):
    return [
        {
            "epoch": i + 1,
            "loss": 6.0 - i / 10,
            "health_similarity_features": similarity,
            **({} if accuracy is None else {"knn": accuracy}),
        }
        for i, accuracy in enumerate(knn)
    ]


def metrics(*knn, raw_pixels=0.3, untrained=0.5, alarms=(), **kwargs):
    found = {
        "history": history(*knn, **kwargs),
        "health": {"alarms": list(alarms)},
    }
    if knn[-1] is not None:
        found |= {
            "knn_raw_pixels": raw_pixels,
            "knn_untrained": untrained,
            "knn_trained": knn[-1],
        }
    return found


def test_the_standard_error_is_that_of_a_share():
    """Nearly; and it is not 0 where all are right."""
    assert _verdict.standard_error(0.5, 100) == pytest.approx(0.05)
    error = math.sqrt(0.26 * 0.74 / 154)
    assert _verdict.standard_error(0.26, 154) == pytest.approx(error, rel=0.02)
    assert _verdict.standard_error(1.0, 1) > 0.4
    assert _verdict.standard_error(0.0, 10) > 0.08


@pytest.mark.parametrize(
    ("found", "num_tests", "words"),
    [
        (
            metrics(0.6, 0.7, 0.75, 0.8),
            2000,
            [
                "0.800 ± 0.009 of the 2,000 test images are classified right: "
                "better than raw pixels (0.300 ± 0.010), and better than the "
                "untrained encoder (0.500 ± 0.011).",
                "still rising at the end, in epoch 4",
                "similarity of 0.40.",
                "No alarm. Train longer: --epochs=8",
            ],
        ),
        (
            metrics(0.52, 0.54, 0.51, 0.52),
            200,
            [
                "better than raw pixels",
                "as good as the untrained encoder",
                "level at the end; its best was 0.540, in epoch 2",
                "little was learned",
            ],
        ),
        (
            metrics(0.6, 0.8, 0.7, 0.4, raw_pixels=0.6),
            2000,
            [
                "worse than raw pixels",
                "worse than the untrained",
                "past its best: 0.800 ± 0.009 in epoch 2",
            ],
        ),
        (metrics(0.6, 0.6, None, 0.6), 2000, ["level", "No alarm."]),
        (
            metrics(0.5, 0.7),
            2000,
            ["measured too seldom for a trend.", "No alarm."],
        ),
        (
            metrics(1.0, 1.0, 1.0, raw_pixels=0.0, untrained=0.0),
            1,
            ["as good as raw pixels", "No alarm. 1 test images are too few"],
        ),
        (
            metrics(0.6, 0.7, 0.75, 0.8, similarity=0.98),
            2000,
            ["similarity of 0.98: nearly all point in one direction"],
        ),
        (
            metrics(None, None),
            2000,
            ["no labels to test with. The loss was 5.90 at the end."],
        ),
    ],
)
def test_what_a_run_has_reached(found, num_tests, words):
    said = "\n".join(_verdict.of_run(found, num_tests))
    for word in words:
        assert word in said


def test_a_run_of_minutes_is_continued_by_epochs():
    found = metrics(0.6, 0.7, 0.75, 0.8)
    for minutes, flags in ((None, ": --epochs=8"), (3, ": --minutes=0 --ep")):
        assert flags in _verdict.of_run(found, 2000, minutes)[-1]
    found = metrics(0.6, 0.8, 0.7, 0.4)
    for minutes, flag in ((None, "--epochs"), (3, "--minutes")):
        trend = _verdict.of_run(found, 2000, minutes)[1]
        assert f"Fewer {flag}, or a lower --learning_rate" in trend


def test_an_alarm_says_what_to_change():
    alarms = [
        {"kind": "collapse", "epoch": 2, "text": "Lower the learning rate."},
        {"kind": "leak", "epoch": 3, "text": "Shuffle."},
    ]
    said = _verdict.of_run(metrics(0.5, 0.5, 0.5, alarms=alarms), 100)
    assert said[-1] == "Alarms: collapse, leak. Lower the learning rate."
    # What is wrong with the images is less grave.
    alarms.insert(0, {"kind": "duplicates", "epoch": 0, "text": "Remove."})
    said = _verdict.of_run(metrics(0.5, 0.5, 0.5, alarms=alarms), 100)
    assert said[-1].startswith("Alarms: duplicates, collapse, leak. Lower the")


def test_a_run_of_before_has_no_health():
    found = metrics(0.6, 0.7, 0.75, 0.8)
    del found["health"]
    for row in found["history"]:
        del row["health_similarity_features"]
    said = _verdict.of_run(found, 2000)
    assert said[-1] == "Its health was not measured." and len(said) == 3
