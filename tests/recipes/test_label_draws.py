from fractions import Fraction

import numpy as np
import pytest

from moco_keras.recipes import _label_draws
from moco_keras.recipes._label_draws import Amount

LABELS = np.repeat([0, 1, 2], [40, 30, 50])


def test_amounts_are_numbers_or_parts():
    found = _label_draws.parse("1, 50,10%,0.5%", "--n")
    assert found == [
        Amount(count=1),
        Amount(count=50),
        Amount(fraction=Fraction(1, 10)),
        Amount(fraction=Fraction(1, 200)),
    ]
    assert [amount.name for amount in found] == [1, 50, "10%", "0.5%"]


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1,", "x", "101%", "0%", "1.5"]
)
def test_other_amounts_are_refused(text):
    with pytest.raises(ValueError, match=f"--n must be.*Received: --n={text}"):
        _label_draws.parse(text, "--n")


def test_an_amount_may_not_be_repeated():
    with pytest.raises(ValueError, match="each amount once"):
        _label_draws.parse("5,10,5", "--n")


@pytest.mark.parametrize("count", [1, 7, 30])
def test_a_draw_has_as_many_of_each_class(count):
    rows = _label_draws.draw(Amount(count=count), LABELS, seed=3)
    assert np.bincount(LABELS[rows]).tolist() == [count] * 3
    assert len(np.unique(rows)) == 3 * count


def test_a_part_is_one_of_each_class():
    rows = _label_draws.draw(Amount(fraction=Fraction(1, 10)), LABELS, seed=0)
    assert np.bincount(LABELS[rows]).tolist() == [4, 3, 5]
    rows = _label_draws.draw(Amount(fraction=Fraction(1, 1000)), LABELS, seed=0)
    assert np.bincount(LABELS[rows]).tolist() == [1, 1, 1]


def test_draws_depend_on_the_seed_and_larger_ones_hold_smaller_ones():
    small, same, other = (
        set(_label_draws.draw(Amount(count=5), LABELS, seed).tolist())
        for seed in (1, 1, 2)
    )
    large = set(_label_draws.draw(Amount(count=20), LABELS, 1).tolist())
    assert small == same != other
    assert small < large


def test_more_labels_than_images_are_refused():
    _label_draws.check(Amount(count=30), LABELS, ["a", "b", "c"], "--n")
    with pytest.raises(ValueError, match="--n must be.*31 for the class b.*30"):
        _label_draws.check(Amount(count=31), LABELS, ["a", "b", "c"], "--n")


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="two classes or more. Received: 9"):
        _label_draws.check(Amount(count=1), np.zeros(9, int), ["a"], "--n")
