"""Which images of a data set count as labeled."""

import re
from fractions import Fraction
from typing import NamedTuple

import numpy as np

USUAL = (1, 5, 10, 50, 200)


class Amount(NamedTuple):
    """How many labels each class has: a number, or a part of its images.

    Attributes:
        count: the number, or None.
        fraction: the part, or None.
    """

    count: int | None = None
    fraction: Fraction | None = None

    @property
    def name(self):
        """As in results: 10, or "1%"."""
        if self.count is not None:
            return self.count
        return f"{float(100 * self.fraction):g}%"


def parse(text, flag):
    """Reads amounts such as "1,5,10" or "1%,10%", in this order.

    Args:
        text: the amounts, with commas between them.
        flag: that gave them, for messages.

    Raises:
        ValueError: if one is neither.
    """
    amounts = []
    for word in text.split(","):
        word = word.strip()
        if re.fullmatch(r"\d+", word) and int(word):
            amounts.append(Amount(count=int(word)))
        elif re.fullmatch(r"\d+(\.\d+)?%", word) and (
            0 < (fraction := Fraction(word[:-1]) / 100) <= 1
        ):
            amounts.append(Amount(fraction=fraction))
        else:
            raise ValueError(
                f"{flag} must be numbers of labels for each class, or parts "
                'of its images, such as "10,50" or "1%,10%". Received: '
                f"{flag}={text}."
            )
    if len(set(amounts)) < len(amounts):
        raise ValueError(
            f"{flag} must name each amount once. Received: {flag}={text}."
        )
    return amounts


def usual(labels):
    """The usual amounts, those that each class has images for.

    Args:
        labels: int (N,), of all images that may be drawn.
    """
    _, counts = np.unique(labels, return_counts=True)
    return [Amount(n) for n in USUAL if n <= min(counts)]


def check(amount, labels, class_names, flag):
    """Refuses more labels of a class than it has images.

    Args:
        amount: an `Amount`.
        labels: int (N,), of all images that may be drawn.
        class_names: a name for each class, or an empty list.
        flag: that gave the amount.

    Raises:
        ValueError: naming the class with the fewest images.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise ValueError(
            "Images with labels must be of two classes or more. Received: "
            f"{len(labels):,} images of {len(classes)} class. Put the images "
            "of each class into a folder of their own."
        )
    smallest = int(np.argmin(counts))
    if amount.count is not None and amount.count > counts[smallest]:
        number = classes[smallest]
        name = class_names[number] if class_names else number
        raise ValueError(
            f"{flag} must be at most the number of images that each class has "
            f"to train with. Received: {amount.count} for the class {name}, "
            f"which has {counts[smallest]:,}. Lower it, or add images."
        )


def draw(amount, labels, seed):
    """Draws images of every class; larger draws of a seed hold the smaller.

    Args:
        amount: an `Amount`; of a part at least one image is drawn.
        labels: int (N,).
        seed: of the draw.

    Returns:
        Their rows, int64, in rising order.
    """
    rows = []
    for label in np.unique(labels):
        rng = np.random.default_rng([seed, int(label)])
        of_class = rng.permutation(np.flatnonzero(labels == label))
        count = amount.count
        if count is None:
            count = max(1, round(amount.fraction * len(of_class)))
        rows.append(of_class[:count])
    return np.sort(np.concatenate(rows))
