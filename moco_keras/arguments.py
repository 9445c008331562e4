"""Checks of what users pass: numbers of any library, seeds, paths."""

import numbers
import operator
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

# The range of float32, in which everything is computed.
_LEAST, _MOST = (
    float(getattr(np.finfo("float32"), x)) for x in ("tiny", "max")
)


class Kind(NamedTuple):
    """A kind of number. It has no NaN and no infinity.

    Attributes:
        words: what a number must be, after "must be".
        holds: function from a number to whether it is.
    """

    words: str
    holds: Callable


FINITE = Kind("a number that is finite", lambda x: abs(x) <= _MOST)
POSITIVE = Kind(
    "a number that is positive and finite", lambda x: _LEAST <= x <= _MOST
)
NOT_NEGATIVE = Kind(
    "a number that is finite and at least 0", lambda x: 0 <= x <= _MOST
)
FRACTION = Kind("a number in [0, 1]", lambda x: 0 <= x <= 1)
POSITIVE_FRACTION = Kind("a number in (0, 1]", lambda x: 0 < x <= 1)
COUNT = Kind("a positive integer below 2**31", lambda x: 1 <= x < 2**31)
INDEX = Kind("an integer from 0 on, below 2**31", lambda x: 0 <= x < 2**31)
VERSION = Kind("a positive integer below 2**63", lambda x: 1 <= x < 2**63)
# NumPy and Keras take no other seeds.
SEED = Kind("an integer from 0 on, below 2**32", lambda x: 0 <= x < 2**32)


def refusal(name, value, words):
    """The error that a value is not what it must be.

    Args:
        name: of the argument or --flag, as users know it.
        value: what was received.
        words: what it must be, after "must be".
    """
    shown = name if name.startswith("--") else f"`{name}`"
    return ValueError(f"{shown} must be {words}. Received: {name}={value!r}.")


def whole(kind=COUNT, **value):
    """Returns a whole number as an `int`.

    Args:
        kind: a `Kind` of integers.
        value: the number, by the name that users know it by.

    Raises:
        ValueError: if it is not a whole number, or not of the kind.
    """
    ((name, number),) = value.items()
    try:
        result = operator.index(number)
    except TypeError:
        result = None
    if result is None or isinstance(number, bool) or not kind.holds(result):
        raise refusal(name, number, kind.words)
    return result


def real(kind=FINITE, **value):
    """Returns a number as a `float`.

    Args:
        kind: a `Kind`.
        value: the number, by the name that users know it by.

    Raises:
        ValueError: if it is not a number, or not of the kind.
    """
    ((name, number),) = value.items()
    # `float` takes text, too.
    is_number = isinstance(number, numbers.Real) or hasattr(number, "__array__")
    try:
        result = float(number) if is_number else None
    except (TypeError, ValueError, OverflowError):
        result = None
    if result is None or not kind.holds(result):
        raise refusal(name, number, kind.words)
    return result


def pair(kind=FINITE, **value):
    """Returns the least and the greatest of a range as a tuple of `float`s.

    Args:
        kind: the `Kind` of both.
        value: the two numbers, by the name that users know them by.

    Raises:
        ValueError: if they are not two such numbers, in this order.
    """
    ((name, both),) = value.items()
    try:
        first, second = both
    except (TypeError, ValueError):
        raise refusal(name, both, "two numbers") from None
    first, second = real(kind, **{name: first}), real(kind, **{name: second})
    if first > second:
        raise refusal(name, both, "two numbers, the least and the greatest")
    return first, second


def sides(**value):
    """Returns the height and the width of images, two `int`s.

    Args:
        value: one number for both, or the two, by the name that users know them
            by.

    Raises:
        ValueError: if they are not positive integers.
    """
    ((name, given),) = value.items()
    if not isinstance(given, (tuple, list)):
        return (whole(**value),) * 2
    if len(given) != 2:
        raise refusal(name, given, "a positive integer, or (height, width)")
    height, width = (whole(**{name: side}) for side in given)
    return height, width


def value_range(given):
    """Returns the darkest and the brightest value of pixels, two `float`s.

    Raises:
        ValueError: if they are not two numbers in this order, and different.
    """
    low, high = pair(value_range=given)
    if low == high:
        raise refusal("value_range", given, "two numbers that differ")
    return low, high


def seed(seed):
    """Returns a seed as an `int`, or None if there is no seed."""
    return None if seed is None else whole(SEED, seed=seed)


def path(**value):
    """Returns a path as a `Path`, with `~` and `~user` as the home folder.

    Args:
        value: a text or an `os.PathLike`, by the name that users know it by.

    Raises:
        ValueError: if it is not a path, is empty, or is in the home folder of
            a user who is not known here.
    """
    ((name, given),) = value.items()
    if not isinstance(given, (str, os.PathLike)) or not str(given):
        raise refusal(name, given, "a path, and not empty")
    try:
        return Path(given).expanduser()
    except RuntimeError:
        words = "a path whose home folder is known here, where it begins with ~"
        raise refusal(name, given, words) from None
