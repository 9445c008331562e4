"""Numbers that users pass: Python's, NumPy's, or a tensor that is one."""

import numbers
import operator


def whole(low=1, **value):
    """Returns a whole number as an `int`.

    Args:
        low: the least that is allowed.
        value: the number, by the name that users know it by.

    Raises:
        ValueError: if it is no whole number, or too small.
    """
    ((name, number),) = value.items()
    try:
        result = operator.index(number)
    except TypeError:
        result = None
    if result is None or isinstance(number, bool) or result < low:
        kind = "a positive integer" if low == 1 else f"an integer from {low} on"
        raise ValueError(
            f"`{name}` must be {kind}. Received: {name}={number!r}."
        )
    return result


def real(**value):
    """Returns a number as a `float`.

    Args:
        value: the number, by the name that users know it by.

    Raises:
        ValueError: if it is no number.
    """
    ((name, number),) = value.items()
    # `float` takes text, too.
    is_number = isinstance(number, numbers.Real) or hasattr(number, "__array__")
    try:
        return float(number) if is_number else float(None)
    except (TypeError, ValueError):
        raise ValueError(
            f"`{name}` must be a number. Received: {name}={number!r}."
        ) from None


def pair(**value):
    """Returns two numbers as a tuple of `float`s.

    Args:
        value: the two numbers, by the name that users know them by.

    Raises:
        ValueError: if they are not two numbers.
    """
    ((name, both),) = value.items()
    try:
        first, second = both
    except (TypeError, ValueError):
        raise ValueError(
            f"`{name}` must be two numbers. Received: {name}={both!r}."
        ) from None
    return real(**{name: first}), real(**{name: second})


def seed(seed):
    """Returns a seed as an `int`, or None for none."""
    return None if seed is None else whole(0, seed=seed)
