"""Pictures of classifiers: what labels buy, and where they are wrong."""

import math

import numpy as np

from moco_keras.files import scanning
from moco_keras.plotting.figures import (
    ACCENT,
    INK,
    OTHER,
    new_figure,
    save,
    say_channels,
    show,
)
from moco_keras.plotting.lettering import Lettering

_NUMBERS = 20  # classes, up to which the numbers are written
_COLUMNS = 6  # of pictures
_NAMES = 50  # classes, up to which the names are written

_LINES = {
    "finetuned": ("fine-tuned", ACCENT),
    "probe": ("frozen + probe", OTHER),
    "scratch": ("from scratch", INK),
}


def few_labels(rows, path):
    """Draws accuracy over the number of labels, with bands of two errors.

    Args:
        rows: those of few_labels.json: dicts of `labels_per_class`, `method`,
            `mean` and `standard_error`.
        path: of the PNG file.
    """
    figure, ((axes,),) = new_figure(1, 1, figsize=(6.4, 4))
    amounts = list(dict.fromkeys(row["labels_per_class"] for row in rows))
    places = range(len(amounts))
    bottom = math.floor(10 * min(row["mean"] for row in rows) - 1) / 10
    bottom = max(0, bottom)
    ends = []
    for method, (name, color) in _LINES.items():
        found = [row for row in rows if row["method"] == method]
        means = [row["mean"] for row in found]
        errors = [2 * (row["standard_error"] or 0) for row in found]
        low, high = (
            [m + sign * e for m, e in zip(means, errors, strict=True)]
            for sign in (-1, 1)
        )
        axes.fill_between(places, low, high, color=color, alpha=0.15, lw=0)
        axes.plot(places, means, "o-", color=color, ms=4, lw=1.8)
        ends.append((means[-1], name, color))
    heights = _apart(ends, 0.06 * (1 - bottom))
    for place, (_, name, color) in zip(heights, ends, strict=True):
        axes.annotate(
            name,
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=color,
        )
    axes.set_xticks(places, [str(amount) for amount in amounts])
    axes.set_xlabel("labels per class")
    axes.set_ylabel("accuracy on test images")
    axes.set_ylim(bottom, 1)
    axes.grid(axis="y", color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def _apart(ends, least):
    """The heights of labels, moved apart where they would overlap."""
    order = sorted(range(len(ends)), key=lambda i: ends[i][0])
    heights = {}
    for i in order:
        below = max(heights.values(), default=-least)
        heights[i] = max(ends[i][0], below + least)
    return [heights[i] for i in range(len(ends))]


def confusion(matrix, class_names, path):
    """Draws the confusion matrix, in parts of each true class.

    Args:
        matrix: int (classes, classes), images by true and by predicted class.
        class_names: a name for each class.
        path: of the PNG file.
    """
    parts = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    count = len(class_names)
    side = min(max(4.5, 0.5 * count), 14)
    figure, ((axes,),) = new_figure(1, 1, figsize=(side + 1, side))
    image = axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if count <= _NAMES:
        lettering = Lettering(class_names)
        names = [lettering.shorten(name, 24) for name in class_names]
        axes.set_xticks(range(count), names, rotation=90, **lettering.style)
        axes.set_yticks(range(count), names, **lettering.style)
    if count <= _NUMBERS:
        for i, j in np.ndindex(*matrix.shape):
            if matrix[i, j]:
                axes.annotate(
                    str(matrix[i, j]),
                    (j, i),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if parts[i, j] > 0.5 else INK,
                )
    figure.colorbar(image, label="part of the true class", shrink=0.8)
    save(figure, path)


def mistakes(found, class_names, path, channels=3):
    """Draws images that were classified wrong, with both classes.

    Args:
        found: tuples (probability, true class, predicted class, uint8
            (H, W, 3)), in the order in which they are drawn.
        class_names: a name for each class.
        path: of the PNG file.
        channels: number of channels of the images.
    """
    labeled_pictures(
        [
            (
                f"is {class_names[true]}",
                f"{probability:.2f} {class_names[predicted]}",
                picture,
            )
            for probability, true, predicted, picture in found
        ],
        path,
        channels,
    )


def labeled_pictures(pictures, path, channels=3):
    """Draws pictures under two lines of text each, in rows of six.

    Args:
        pictures: tuples (first line, second line, uint8 (H, W, 3)).
        path: of the PNG file, which is marked as drawn here.
        channels: number of channels of the images.
    """
    rows = max(1, math.ceil(len(pictures) / _COLUMNS))
    figure, grid = new_figure(
        rows, _COLUMNS, figsize=(1.9 * _COLUMNS, 2.3 * rows)
    )
    for axes in grid.flat:
        axes.axis("off")
    lettering = Lettering([x for *lines, _ in pictures for x in lines])
    for axes, (*lines, picture) in zip(grid.flat, pictures, strict=False):
        show(axes, picture)
        lettering.title(axes, lines, 1.7, fontsize=8, color=INK)
    if not pictures:
        grid[0, 0].set_title("none", fontsize=9, color=INK)
    say_channels(figure, channels)
    save(figure, path, dict([scanning.MARK]))
