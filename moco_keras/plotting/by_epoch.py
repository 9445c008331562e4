"""Numbers of a run by epoch, with the lines that give them meaning."""

from moco_keras.evaluation.health import PREFIX, uniformity_limit
from moco_keras.plotting.figures import ACCENT, INK, OTHER, new_figure, save

_DRAWN = "epoch", "loss", "contrastive_accuracy", "knn"


def curves(epochs, path, raw_pixels=None, untrained=None, chance=None):
    """Draws loss and contrastive accuracy by epoch, and kNN accuracy if known.

    Args:
        epochs: a dict for each epoch, of numbers or of a CSV file's texts:
            "loss", "contrastive_accuracy", and "knn" if it was evaluated;
            "epoch" counts from 1, or from 0 as Keras does. Or what `fit`
            returns, or its `history`, lists by the same names.
        path: of the PNG file.
        raw_pixels, untrained: kNN accuracies to compare with, or None.
        chance: what a guess reaches: a dict of "loss", "contrastive_accuracy"
            and "knn", or some of them.

    Raises:
        ValueError: if something is missing, or is not a number.
    """
    epochs, chance = _epoch_rows(epochs), chance or {}
    lines = {"untrained": untrained, "raw pixels": raw_pixels}
    lines = {name: x for name, x in lines.items() if x is not None}
    known = any("knn" in e for e in epochs) or lines
    columns = 3 if known else 2
    figure, (panels,) = new_figure(1, columns, figsize=(4 * columns, 3.6))
    if known:
        _knn(panels[0], epochs, {**lines, **_line(chance.get("knn"))})
    for axes, name, title in (
        (panels[-2], "loss", "InfoNCE loss, nats"),
        (panels[-1], "contrastive_accuracy", "contrastive accuracy"),
    ):
        _panel(axes, title, epochs, {name: ""}, _line(chance.get(name)))
    save(figure, path)


def health(epochs, path, setup, alarms=()):
    """Draws what a `HealthMonitor` measured, by epoch.

    Args:
        epochs: as in `curves`, with the columns of a `HealthMonitor`. Epochs
            that it did not measure are left out; a history of such does not
            say which they are, and is refused.
        path: of the PNG file.
        setup: its `setup`.
        alarms: `evaluation.alarms.Alarm`s, to be named in the title.

    Raises:
        ValueError: if no epoch was measured.
    """
    all_rows = _epoch_rows(epochs, PREFIX)
    rows = [row for row in all_rows if PREFIX + "alignment" in row]
    if not rows:
        raise ValueError(
            "`epochs` must have columns of a `HealthMonitor`. Received "
            f"{len(all_rows)} epochs without. Give `fit` the callback."
        )
    figure, grid = new_figure(2, 4, figsize=(16, 7.2))
    of_queue = setup.queue_size is not None
    _bands(grid[0, 0], rows, ("positive", "negative")[: 1 + of_queue])
    of_both = "features", "projections"
    panels = [
        ("alignment", {"alignment": ""}, {"at best, or collapsed": 0}),
        (
            "uniformity",
            {"uniformity": ""},
            {
                "collapsed": 0,
                "at best": uniformity_limit(setup.projection_dim),
            },
        ),
        (
            "effective rank",
            {f"rank_{x}": x for x in of_both},
            {"collapsed": 1},
        ),
        (
            "deviation",
            {f"deviation_{x}": x for x in of_both},
            {"at best": 1, "collapsed": 0},
        ),
        (
            "mean similarity of different images",
            {f"similarity_{x}": x for x in of_both},
            {"collapsed": 1},
        ),
        (
            "distance of the key encoder",
            {"key_distance": ""},
            {"a copy": 0},
        ),
    ]
    places = [grid[0, 1], grid[0, 2], grid[0, 3], *grid[1, :3]]
    for axes, (title, names, lines) in zip(places, panels, strict=True):
        _panel(
            axes, title, rows, {PREFIX + k: v for k, v in names.items()}, lines
        )
    last = grid[1, 3]
    if of_queue:
        _panel(
            last,
            "contrastive accuracy",
            rows,
            {
                "contrastive_accuracy": "training",
                PREFIX + "accuracy": "inference",
            },
            {"chance": 1 / (1 + setup.queue_size)},
        )
    else:
        last.axis("off")
    if alarms:
        named = ", ".join(f"{a.kind} (epoch {a.epoch})" for a in alarms)
        figure.suptitle(f"Alarms: {named}", color=ACCENT)
    save(figure, path)


def _epoch_rows(epochs, prefix=()):
    """The epochs that were given, as dicts of numbers, counted from 1.

    Args:
        epochs: as in `curves`.
        prefix: of the columns that are drawn beside those of `curves`.
    """

    def is_drawn(name):
        return name in _DRAWN or name.startswith(prefix)

    epochs = getattr(epochs, "history", epochs)
    if isinstance(epochs, dict):
        epochs = _rows_of_history(epochs, is_drawn)
    rows = [
        {
            name: number
            for name, text in row.items()
            if is_drawn(name) and (number := _number(name, text)) is not None
        }
        for row in epochs
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


def _rows_of_history(history, is_drawn):
    lengths = {name: len(x) for name, x in history.items() if is_drawn(name)}
    most = max(lengths.values(), default=0)
    for name, length in lengths.items():
        if length != most and name not in ("loss", "contrastive_accuracy"):
            raise ValueError(
                "`epochs` must say in which of them a number was measured. "
                f"Received: {length} values of {name}, of {most} epochs, in a "
                "history, which does not say it. Pass the rows that "
                "`keras.callbacks.CSVLogger` writes, `csv.DictReader(file)`."
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
        raise ValueError(
            f"`epochs` must hold numbers. Received: {name}={text!r}."
        ) from None


def _line(value):
    return {} if value is None else {"chance": value}


def _panel(axes, title, rows, names, lines):
    """Draws columns by epoch, and horizontal lines.

    Args:
        axes: matplotlib's.
        title: of the panel.
        rows: dicts of numbers, which may lack some.
        names: what each column is called in the legend, by its name; empty for
            one that the title names.
        lines: heights by what they are called.
    """
    colors = (OTHER, ACCENT) if len(names) > 1 else (OTHER,)
    for (column, name), color in zip(names.items(), colors, strict=True):
        points = [(r["epoch"], r[column]) for r in rows if column in r]
        # The marks show a single epoch, too.
        axes.plot(
            *zip(*points, strict=True), "o-", color=color, ms=3, label=name
        )
    if len(names) > 1:
        axes.legend(fontsize=8, frameon=False)
    _lines(axes, lines)
    axes.set_title(title)
    _by_epoch(axes)


def _lines(axes, lines):
    for name, height in lines.items():
        axes.axhline(height, color=INK, linestyle=":", linewidth=1)
        axes.annotate(
            name,
            (1, height),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=8,
            color=INK,
        )
    axes.margins(y=0.15)


def _by_epoch(axes):
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.spines[["top", "right"]].set_visible(False)


def _knn(axes, epochs, lines):
    """Draws kNN accuracies by epoch, from that of the untrained encoder on."""
    known = [(e["epoch"], e["knn"]) for e in epochs if "knn" in e]
    untrained = [(0, lines[name]) for name in lines if name == "untrained"]
    if untrained + known:
        axes.plot(*zip(*untrained, *known, strict=True), "o-", color=ACCENT)
    _lines(axes, lines)
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
    _by_epoch(axes)


def _bands(axes, rows, names):
    """Draws medians of similarities, between their 5th and 95th percentiles."""
    number = [row["epoch"] for row in rows]
    for name, color in zip(names, (OTHER, ACCENT), strict=False):
        low, middle, high = (
            [row[f"{PREFIX}{name}_{q}"] for row in rows]
            for q in ("05", "50", "95")
        )
        axes.fill_between(number, low, high, color=color, alpha=0.2, lw=0)
        axes.plot(number, middle, "o-", color=color, ms=3, label=f"{name}s")
    axes.legend(fontsize=8, frameon=False)
    axes.set_title("similarities, 5th to 95th percentile")
    _by_epoch(axes)
