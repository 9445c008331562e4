"""The picture of what a few labels buy."""

from moco_keras.plotting.figures import ACCENT, INK, OTHER, new_figure, save

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
    for place, (_, name, color) in zip(_apart(ends), ends, strict=True):
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
    axes.set_ylim(0, 1)
    axes.grid(axis="y", color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def _apart(ends, least=0.06):
    """The heights of labels, moved apart where they would overlap."""
    order = sorted(range(len(ends)), key=lambda i: ends[i][0])
    heights = {}
    for i in order:
        below = max(heights.values(), default=-least)
        heights[i] = max(ends[i][0], below + least)
    return [heights[i] for i in range(len(ends))]
