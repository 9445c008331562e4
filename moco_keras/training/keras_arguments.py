"""Checks of the arguments that Keras's own methods take."""

import reprlib

from moco_keras import arguments


def check_counts(**counts):
    """Checks whole numbers; None stays None."""
    return [
        None if number is None else arguments.whole(**{name: number})
        for name, number in counts.items()
    ]


def refuse_weights(class_weight=None, sample_weight=None):
    """Refuses weights of classes and of images."""
    refuse(
        "Pre-training takes images without labels, which all count alike. "
        "Leave the argument out.",
        class_weight=class_weight,
        sample_weight=sample_weight,
    )


def refuse(reason, **values):
    """Refuses arguments that have no meaning here.

    Raises:
        ValueError: if one is given.
    """
    for name, value in values.items():
        empty = isinstance(value, (list, tuple, dict)) and not value
        if value is not None and not empty:
            raise ValueError(
                f"{reason} Received: {name}={reprlib.repr(value)}."
            )
