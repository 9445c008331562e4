"""Pictures of images. matplotlib is imported only when one is drawn."""

import math

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


def views(images, im_q, im_k, path, channels=3):
    """Draws images above their two views.

    Args:
        images: (N, H, W, C), pixels in [0, 255].
        im_q, im_k: views of them, (N, H, W, C).
        path: of the PNG file.
        channels: of the images, where these are drawn by `as_rgb`.
    """
    rows = {"image": images, "query view": im_q, "key view": im_k}
    figure, grid = new_figure(3, len(images), figsize=(len(images) * 1.3, 4.2))
    for axes_row, (name, pictures) in zip(grid, rows.items(), strict=True):
        for axes, picture in zip(axes_row, pictures, strict=True):
            show(axes, picture)
        axes_row[0].set_ylabel(name, color=INK, fontsize=10)
    say_channels(figure, channels)
    save(figure, path)


def neighbours(
    queries,
    query_labels,
    bank,
    bank_labels,
    class_names,
    path,
    channels=3,
):
    """Draws images beside their nearest neighbors, framed by their labels.

    Args:
        queries: (N, H, W, C), pixels in [0, 255].
        query_labels: int (N,).
        bank: (N, k, H, W, C), the neighbors, nearest first.
        bank_labels: int (N, k).
        class_names: a name for each label; without names there are no frames.
        path: of the PNG file.
        channels: as in `views`.
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
    say_channels(figure, channels)
    save(figure, path)


def nearest(query, pictures, path, channels=3):
    """Draws an image and those nearest to it, in rows of five.

    Args:
        query: (H, W, C), pixels in [0, 255].
        pictures: (name, similarity, uint8 (H, W, 3)) of each of the others, of
            any size.
        path: of the PNG file, which is marked as drawn here.
        channels: as in `views`.
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
    say_channels(figure, channels)
    save(figure, path, dict([scanning.MARK]))
