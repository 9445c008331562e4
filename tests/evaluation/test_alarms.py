"""Each alarm sounds for its sign, and only for it."""

import math
import re

import pytest

from moco_keras.evaluation import alarms
from moco_keras.evaluation.alarms import Setup

SETUP = Setup(
    num_images=2000,
    sample_size=1024,
    projection_dim=128,
    queue_size=512,
    temperature=0.2,
    momentum=0.99,
    copies=0.0,
    blank=0.0,
)
GUESS = math.log(513)
HEALTHY = {
    "loss": GUESS - 1,
    "contrastive_accuracy": 0.3,
    "health_queue_age": 8,
    "health_equal_views": 0.0,
    "health_alignment": 0.4,
    "health_deviation_projections": 0.8,
    "health_rank_projections": 20.0,
    "health_key_distance": 0.02,
    "health_accuracy": 0.3,
}


def rows(*changes, **change):
    """Epochs from 1 on; the last has the changes, the others are healthy."""
    changes = [*changes, change] if change else list(changes)
    changes = [{}] * (3 - len(changes)) + changes
    return [
        {**HEALTHY, "epoch": i + 1, **changes[i]} for i in range(len(changes))
    ]


def kinds(found):
    return [alarm.kind for alarm in found]


@pytest.mark.parametrize(
    ("change", "expected", "words"),
    [
        ({}, [], ""),
        ({"blank": 0.02}, ["blank images"], "2.0%"),
        ({"blank": 0.009}, [], ""),
        ({"copies": 0.5}, ["duplicates"], "50.0%"),
        ({"copies": 0.04}, [], ""),
        ({"momentum": 0.0}, ["key encoder"], "momentum=0 "),
        ({"momentum": None}, [], ""),  # a schedule
        ({"queue_size": 2001}, ["queue too long"], "2,001.*2,000 images"),
        ({"queue_size": 2000}, [], ""),
        ({"queue_size": 4000, "keys_per_image": 2}, [], ""),
        ({"queue_size": 4001, "keys_per_image": 2}, ["queue too long"], ""),
        ({"temperature": 10.0}, ["temperature"], "from 6.240 to 6.140"),
        ({"temperature": 1.0}, [], ""),
        ({"temperature": 0.07}, [], ""),
        # Another method.
        ({"queue_size": None, "temperature": 10.0, "momentum": 0}, [], ""),
        ({"temperature": None}, [], ""),
        ({"copies": None, "blank": None}, [], ""),
    ],
)
def test_alarms_before_training(change, expected, words):
    found = alarms.before_training(SETUP._replace(**change))
    assert kinds(found) == expected
    assert all(re.search(words, a.text) and a.epoch == 0 for a in found)


def test_what_a_perfect_encoder_gains_is_that_of_its_similarities():
    """Positives of 1, negatives of 0."""
    for views in (1, 2):
        setup = SETUP._replace(keys_per_image=views)
        positive, negatives = math.exp(1 / 0.2), 512 * math.exp(0)
        best = -math.log(positive / (positive + negatives))
        assert setup.chance == pytest.approx(views * GUESS)
        assert setup.chance - setup.gain == pytest.approx(views * best)


@pytest.mark.parametrize(
    ("epochs", "expected", "words"),
    [
        (rows(), [], ""),
        (rows(health_deviation_projections=0.04), ["collapse"], "0.040"),
        (rows(health_deviation_projections=0.06), [], ""),
        (rows(health_rank_projections=2.4), ["partial collapse"], "2.4.*128"),
        (rows(health_rank_projections=2.6), [], ""),
        (rows(health_equal_views=1.0), ["equal views"], "100%"),
        (rows(health_equal_views=0.1), [], ""),
        (rows(health_key_distance=0.0), ["no learning"], "has not moved"),
        # As small as roundings leave it after a long decay.
        (rows(health_key_distance=1e-8), [], ""),
        (rows(loss=GUESS + 1.3), ["divergence"], "7.540.*6.240"),
        (rows(loss=GUESS + 1.1), [], ""),
        # Of two epochs at ln(1 + K), for one may only pass by.
        (rows({"loss": GUESS}, {"loss": GUESS}), ["no learning"], "6.240"),
        (rows({"loss": GUESS + 0.3}, {"loss": GUESS}), [], ""),
        (rows({"loss": GUESS}, {"loss": GUESS - 0.3}), [], ""),
        (
            rows(contrastive_accuracy=0.7, health_accuracy=0.3),
            ["leak"],
            "0.70.*0.30",
        ),
        (rows(contrastive_accuracy=0.5, health_accuracy=0.9), [], ""),
        (
            rows(contrastive_accuracy=0.97, health_accuracy=0.97),
            ["too easy"],
            "0.97",
        ),
    ],
)
def test_alarms_of_an_epoch(epochs, expected, words):
    found = alarms.of_epoch(SETUP, epochs)
    assert kinds(found) == expected
    assert all(re.search(words, a.text) and a.epoch == 3 for a in found)


def test_rows_without_a_later_column_are_judged():
    before = [
        {k: v for k, v in row.items() if k != "health_equal_views"}
        for row in rows(health_deviation_projections=0.0)
    ]
    assert kinds(alarms.find(SETUP, before)) == ["collapse"]


def test_numbers_that_are_not_finite_are_a_divergence():
    last = {"epoch": 3, "loss": 5.0, "health_queue_age": 8}
    found = alarms.of_epoch(SETUP, [*rows()[:2], last])
    assert kinds(found) == ["divergence"]
    assert "not finite" in found[0].text


@pytest.mark.parametrize(
    "change",
    [
        {"loss": GUESS + 2},
        {"contrastive_accuracy": 0.99, "health_accuracy": 0.0},
        {"contrastive_accuracy": 0.99, "health_accuracy": 0.99},
    ],
)
def test_random_keys_in_the_queue_raise_no_alarm(change):
    """A random key is easy, whatever the encoder is like."""
    filling = [
        {**HEALTHY, **change, "epoch": i + 1, "health_queue_age": age}
        for i, age in enumerate((4, 8))
    ]
    assert alarms.of_epoch(SETUP, filling[:1]) == []
    assert alarms.of_epoch(SETUP, filling) == []
    full = [*filling, {**filling[-1], "epoch": 3}]
    assert len(alarms.of_epoch(SETUP, full)) == 1


def test_a_late_high_accuracy_is_a_success():
    late = [{**row, "epoch": row["epoch"] + 20} for row in rows()]
    late[-1] |= {"contrastive_accuracy": 0.97, "health_accuracy": 0.97}
    assert alarms.of_epoch(SETUP, late) == []


def test_the_first_epoch_may_still_be_collapsed():
    row = {**HEALTHY, "epoch": 1, "health_deviation_projections": 0.01}
    assert alarms.of_epoch(SETUP, [row]) == []


@pytest.mark.parametrize("change", [{"projection_dim": 4}, {"sample_size": 3}])
def test_few_numbers_or_images_have_a_lower_least_rank(change):
    setup = SETUP._replace(**change)
    assert alarms.of_epoch(setup, rows(health_rank_projections=1.5)) == []


@pytest.mark.parametrize("momentum", [None, 0.0])
def test_a_key_encoder_without_lag_may_equal_the_query_encoder(momentum):
    """Also with a schedule, whose m is not known here."""
    setup = SETUP._replace(momentum=momentum)
    assert alarms.of_epoch(setup, rows(health_key_distance=0.0)) == []


@pytest.mark.parametrize("change", [{"temperature": None}, {"queue_size": 64}])
def test_what_is_not_known_or_easy_anyway_is_not_judged(change):
    last = rows(loss=3.5, contrastive_accuracy=0.97, health_accuracy=0.97)
    assert alarms.of_epoch(SETUP._replace(**change), last) == []
    assert kinds(alarms.of_epoch(SETUP, last)) == ["too easy"]


def test_a_run_is_judged_by_its_history():
    """The first of each kind; epochs that were not measured are left out."""
    history = [
        *rows(health_deviation_projections=0.01),
        {"epoch": 4, "loss": 1.0, "contrastive_accuracy": 0.1},
        {**HEALTHY, "epoch": 5, "health_deviation_projections": 0.0},
        {**HEALTHY, "epoch": 6, "health_rank_projections": 1.0},
    ]
    found = alarms.find(SETUP._replace(copies=0.5), history)
    assert [(a.kind, a.epoch) for a in found] == [
        ("duplicates", 0),
        ("collapse", 3),
        ("partial collapse", 6),
    ]
    assert alarms.find(SETUP, [{"epoch": 1, "loss": 1.0}]) == []
