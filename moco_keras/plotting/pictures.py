"""Pictures of a run. matplotlib is imported only when one is drawn."""

import math

from moco_keras.data import image_files
from moco_keras.plotting.figures import (
    ACCENT,
    INK,
    OTHER,
    new_figure,
    save,
    show,
)
from moco_keras.plotting.lettering import Lettering


def curves(epochs, path, raw_pixels=None, untrained=None):
    """Draws loss and contrastive accuracy by epoch, and kNN accuracy if known.

    Args:
        epochs: a dict for each epoch, of numbers or of a CSV file's texts:
            "loss", "contrastive_accuracy", and "knn" if it was evaluated;
            "epoch" counts from 1, or from 0 as Keras does. Or what `fit`
            returns, or its `history`, lists by the same names.
        path: of the PNG file.
        raw_pixels, untrained: kNN accuracies to compare with, or None.

    Raises:
        ValueError: if something is missing, or is not a number.
    """
    epochs = _epoch_rows(epochs)
    number = [int(e["epoch"]) for e in epochs]
    lines = {"untrained": untrained, "raw pixels": raw_pixels}
    lines = {name: x for name, x in lines.items() if x is not None}
    known = [(e["epoch"], e["knn"]) for e in epochs if "knn" in e]
    columns = 3 if known or lines else 2
    figure, (panels,) = new_figure(1, columns, figsize=(4 * columns, 3.6))
    if columns == 3:
        _knn(panels[0], known, lines)
    for axes, name, title in (
        (panels[-2], "loss", "InfoNCE loss, nats"),
        (panels[-1], "contrastive_accuracy", "contrastive accuracy"),
    ):
        # The marks show a single epoch, too.
        axes.plot(number, [e[name] for e in epochs], "o-", color=OTHER, ms=3)
        axes.set_title(title)
    for axes in panels:
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def _epoch_rows(epochs):
    """The epochs that `curves` takes, as dicts of numbers, counted from 1."""
    epochs = getattr(epochs, "history", epochs)
    if isinstance(epochs, dict):
        epochs = _rows_of_history(epochs)
    rows = [
        {name: _number(name, text) for name, text in row.items()}
        for row in epochs
    ]
    rows = [
        {name: x for name, x in row.items() if x is not None} for row in rows
    ]
    needed = "loss", "contrastive_accuracy"
    for name in needed:
        if not rows or any(name not in row for row in rows):
            raise ValueError(
                f"`epochs` must hold {' and '.join(needed)} of every epoch, of "
                f"one or more. Received {len(rows)} epochs, "
                f"{sum(name in row for row in rows)} with {name}. Pass "
                "`model.fit(...).history`, or the rows of history.csv."
            )
    first = 1 - int(rows[0].get("epoch", 0) > 0)
    return [
        {**row, "epoch": row.get("epoch", i) + first}
        for i, row in enumerate(rows)
    ]


def _rows_of_history(history):
    lengths = {name: len(values) for name, values in history.items()}
    most = max(lengths.values(), default=0)
    if lengths.get("knn", most) != most:
        raise ValueError(
            "`epochs` must say in which of them kNN was evaluated. Received: "
            f"{lengths['knn']} values of {most} epochs, in a history, which "
            "does not say it. Pass the rows that `keras.callbacks.CSVLogger` "
            "writes, `csv.DictReader(file)`."
        )
    return [
        {name: x[i] for name, x in history.items() if i < len(x)}
        for i in range(most)
    ]


def _number(name, text):
    """Converts to a number, which may be a text of a CSV file; or None."""
    if text is None or text in ("", "NA"):  # as `CSVLogger` writes
        return None
    try:
        return float(text)
    except (TypeError, ValueError):
        if name not in ("epoch", "loss", "contrastive_accuracy", "knn"):
            return None  # it is not drawn
        raise ValueError(
            f"`epochs` must hold numbers. Received: {name}={text!r}."
        ) from None


def _knn(axes, known, lines):
    """Draws (epoch, accuracy) and horizontal lines by name."""
    untrained = [(0, lines[name]) for name in lines if name == "untrained"]
    if untrained + known:
        axes.plot(*zip(*untrained, *known, strict=True), "o-", color=ACCENT)
    for name, value in lines.items():
        axes.axhline(value, color=INK, linestyle=":", linewidth=1)
        axes.annotate(
            name,
            (1, value),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=8,
            color=INK,
        )
    if known:
        axes.annotate(
            f"{known[-1][1]:.3f}",
            known[-1],
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            color=ACCENT,
        )
    axes.set_title("kNN accuracy")
    axes.margins(y=0.15)


def views(images, im_q, im_k, path):
    """Draws images above their two views.

    Args:
        images: uint8 (N, H, W, 3).
        im_q, im_k: views (N, S, S, 3), pixels in [0, 255].
        path: of the PNG file.
    """
    rows = {"image": images, "query view": im_q, "key view": im_k}
    figure, grid = new_figure(3, len(images), figsize=(len(images) * 1.3, 4.2))
    for axes_row, (name, pictures) in zip(grid, rows.items(), strict=True):
        for axes, picture in zip(axes_row, pictures, strict=True):
            show(axes, picture)
        axes_row[0].set_ylabel(name, color=INK, fontsize=10)
    save(figure, path)


def neighbours(queries, query_labels, bank, bank_labels, class_names, path):
    """Draws images beside their nearest neighbors, framed by their labels.

    Args:
        queries: uint8 (N, H, W, 3).
        query_labels: int (N,).
        bank: uint8 (N, k, H, W, 3), the neighbors, nearest first.
        bank_labels: int (N, k).
        class_names: a name for each label; without names there are no frames.
        path: of the PNG file.
    """
    num_queries, k = bank_labels.shape
    # Two columns of queries make the picture wide rather than tall.
    num_rows = math.ceil(num_queries / 2)
    figure, grid = new_figure(
        num_rows,
        2 * (k + 2),
        figsize=(2 * (k + 2) * 1.05, num_rows * 1.35),
        width_ratios=[*[1] * (k + 1), 0.3] * 2,
    )
    for axes in grid.flat:
        axes.axis("off")
    lettering = Lettering(class_names)
    for i in range(num_queries):
        row = grid[i % num_rows, (i // num_rows) * (k + 2) :][: k + 2]
        show(row[0], queries[i])
        if class_names:
            name = class_names[query_labels[i]]
            lettering.title(row[0], [name], 0.95, fontsize=9, color=INK)
        for j in range(k):
            if not class_names:
                show(row[1 + j], bank[i, j])
                continue
            right = bank_labels[i, j] == query_labels[i]
            color = OTHER if right else ACCENT
            show(row[1 + j], bank[i, j], frame=color)
            name = class_names[bank_labels[i, j]]
            lettering.title(row[1 + j], [name], 0.95, fontsize=8, color=color)
    save(figure, path)


def nearest(query, pictures, path):
    """Draws an image and those nearest to it, in rows of five.

    Args:
        query: uint8 (H, W, 3).
        pictures: (name, similarity, uint8 (H, W, 3)) of each of the others, of
            any size.
        path: of the PNG file, which is marked as drawn here.
    """
    num_rows = math.ceil((1 + len(pictures)) / 5)
    figure, grid = new_figure(num_rows, 5, figsize=(10, 2.4 * num_rows))
    for axes in grid.flat:
        axes.axis("off")
    first, *others = grid.flat
    show(first, query, frame=ACCENT)
    first.set_title("query", fontsize=9, color=ACCENT)
    lettering = Lettering([name for name, *_ in pictures])
    for axes, (name, similarity, picture) in zip(
        others, pictures, strict=False
    ):
        show(axes, picture)
        lines = [name, f"{similarity:.3f}"]
        lettering.title(axes, lines, 1.8, fontsize=7, color=INK)
    save(figure, path, dict([image_files.MARK]))
