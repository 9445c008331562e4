import csv
import itertools
import os

import keras
import matplotlib
import numpy as np
import pytest
from PIL import Image

from moco_keras import plotting
from moco_keras.evaluation import health
from moco_keras.evaluation.alarms import Alarm, Setup
from moco_keras.plotting import by_epoch, pictures


def not_white(path, left, right):
    """Share of the picture's pixels, between two parts of its width."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    width = pixels.shape[1]
    part = pixels[:, int(left * width) : int(right * width)]
    return (part < 255).any(axis=2).mean()


LOSS, ACCURACY, KNN = [8.0, 9.5, 2.5], [0.25, 0.5, 0.75], {0: 0.3, 2: 0.5}
HISTORY = {
    "loss": LOSS,
    "contrastive_accuracy": ACCURACY,
    "knn": [0.3, 0.4, 0.5],
}
ROWS = [
    {"epoch": i + 1, "loss": LOSS[i], "contrastive_accuracy": ACCURACY[i]}
    | ({"knn": KNN[i]} if i in KNN else {})
    for i in range(3)
]


def by_csv_logger(folder):
    """What Keras's `CSVLogger` writes about `ROWS`, one of which lacks kNN."""
    log = keras.callbacks.CSVLogger(folder / "log.csv")
    log.set_model(keras.Sequential())
    log.on_train_begin()
    for i, row in enumerate(ROWS):
        log.on_epoch_end(i, {k: v for k, v in row.items() if k != "epoch"})
    log.on_train_end()
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def drawn_lines(figure):
    """The points of each panel's lines, by its title."""
    return {
        axes.get_title(): [
            np.transpose(line.get_data()).tolist()
            for line in axes.get_lines()
            if line.get_marker() == "o"
        ]
        for axes in figure.axes
    }


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """Draws curves into a file; returns the lines."""
    figures = []
    save = by_epoch.save
    monkeypatch.setattr(
        by_epoch, "save", lambda *a: (figures.append(a[0]), save(*a))
    )

    def run(epochs, **kwargs):
        plotting.curves(epochs, tmp_path / "curves.png", **kwargs)
        assert not_white(tmp_path / "curves.png", 0, 1) > 0.01
        return drawn_lines(figures[-1])

    return run


def in_csv(rows, folder):
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with (folder / "rows.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "form",
    [
        lambda folder: ROWS,
        lambda folder: in_csv(ROWS, folder),
        by_csv_logger,
        lambda folder: [{**r, "epoch": np.int64(r["epoch"])} for r in ROWS],
    ],
    ids=["dicts", "csv", "csv_logger", "numpy"],
)
@pytest.mark.parametrize("untrained", [None, 0.2])
@pytest.mark.parametrize("raw_pixels", [None, 0.35])
def test_curves_show_the_epochs(form, untrained, raw_pixels, draw, tmp_path):
    lines = draw(form(tmp_path), untrained=untrained, raw_pixels=raw_pixels)
    before = [] if untrained is None else [[0, untrained]]
    assert lines == {
        "kNN accuracy": [[*before, [1, 0.3], [3, 0.5]]],
        "InfoNCE loss, nats": [[[1, 8.0], [2, 9.5], [3, 2.5]]],
        "contrastive accuracy": [[[1, 0.25], [2, 0.5], [3, 0.75]]],
    }


def test_curves_of_a_history_from_fit(draw, make_model, images):
    fitted = make_model().fit(images, batch_size=8, epochs=2, verbose=0)
    lines = draw(fitted)
    assert lines == draw(fitted.history)
    losses = [list(x) for x in zip((1, 2), fitted.history["loss"], strict=True)]
    assert lines["InfoNCE loss, nats"] == [losses]
    assert len(lines) == 2


def test_curves_of_a_history_with_knn_in_every_epoch(draw):
    lines = draw(HISTORY)
    assert lines["kNN accuracy"] == [[[1, 0.3], [2, 0.4], [3, 0.5]]]
    # Only that of an untrained encoder.
    rows = [{k: v for k, v in row.items() if k != "knn"} for row in ROWS]
    assert draw(rows, untrained=0.2)["kNN accuracy"] == [[[0, 0.2]]]


@pytest.mark.parametrize(
    ("epochs", "message"),
    [
        ([], "one or more. Received 0 epochs"),
        ({}, "one or more. Received 0 epochs"),
        ([{"loss": 1.0}], "1 epochs, 0 with contrastive_accuracy"),
        ([ROWS[0], {"epoch": 2}], "2 epochs, 1 with loss"),
        (
            {**HISTORY, "knn": [0.3, 0.5]},
            "2 values of knn, of 3 epochs.*CSVLogger",
        ),
        ([{**ROWS[0], "loss": "high"}], "numbers. Received: loss='high'"),
    ],
)
def test_epochs_that_cannot_be_drawn_are_refused(epochs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plotting.curves(epochs, tmp_path / "curves.png")


def horizontal_lines(figure):
    """The heights of each panel's dotted lines, by its title."""
    return {
        axes.get_title(): sorted(
            float(line.get_ydata()[0])
            for line in axes.get_lines()
            if line.get_linestyle() == ":"
        )
        for axes in figure.axes
    }


@pytest.fixture
def by_epoch_figures(monkeypatch):
    found = []
    monkeypatch.setattr(
        by_epoch, "save", lambda figure, path: found.append(figure)
    )
    return found


def test_curves_show_what_a_guess_reaches(by_epoch_figures, tmp_path):
    chance = {"loss": 9.0, "contrastive_accuracy": 0.01, "knn": 0.1}
    plotting.curves(ROWS, tmp_path, 0.35, 0.2, chance)
    assert horizontal_lines(by_epoch_figures[0]) == {
        "kNN accuracy": [0.1, 0.2, 0.35],
        "InfoNCE loss, nats": [9.0],
        "contrastive accuracy": [0.01],
    }
    plotting.curves(ROWS, tmp_path, chance={"loss": 9.0})
    assert horizontal_lines(by_epoch_figures[1])["kNN accuracy"] == []


MEASURES = (
    "alignment", "uniformity", "rank_features", "rank_projections",
    "deviation_features", "deviation_projections", "similarity_features",
    "similarity_projections", "positive_05", "positive_50", "positive_95",
    "negative_05", "negative_50", "negative_95", "accuracy", "key_distance",
)  # fmt: skip
MEASURED = [
    {**row, **{f"health_{x}": i + row["epoch"] for i, x in enumerate(MEASURES)}}
    if row["epoch"] != 2
    else row
    for row in ROWS
]
SETUP = Setup(2000, 1024, 128, 512, 0.2, 0.99)


@pytest.mark.parametrize("queue_size", [512, None])
def test_health_shows_the_epochs_that_were_measured(
    queue_size, by_epoch_figures, tmp_path
):
    setup = SETUP._replace(queue_size=queue_size)
    rows = MEASURED
    if queue_size is None:  # and its columns are not there
        of_queue = ("health_negative", "health_accuracy")
        rows = [
            {k: v for k, v in row.items() if not k.startswith(of_queue)}
            for row in rows
        ]
    plotting.health(rows, tmp_path, setup)
    (figure,) = by_epoch_figures
    lines = drawn_lines(figure)
    assert lines["alignment"] == [[[1, 1], [3, 3]]]
    assert lines["effective rank"] == [[[1, 3], [3, 5]], [[1, 4], [3, 6]]]
    positives = [[1, 10], [3, 12]]
    negatives = [[[1, 13], [3, 15]]] if queue_size else []
    bands = lines["similarities, 5th to 95th percentile"]
    assert bands == [positives, *negatives]
    heights = horizontal_lines(figure)
    assert heights["uniformity"] == [health.uniformity_limit(128), 0]
    assert heights["deviation"] == [0, 1]
    if queue_size:
        trained = [[1, ACCURACY[0]], [3, ACCURACY[2]]]
        assert lines["contrastive accuracy"] == [trained, [[1, 15], [3, 17]]]
        assert heights["contrastive accuracy"] == [1 / 513]
    assert figure.get_suptitle() == ""


def test_health_names_the_alarms_and_takes_csv_files(tmp_path):
    path = tmp_path / "health.png"
    alarms = [Alarm("collapse", 2, ""), Alarm("duplicates", 0, "")]
    plotting.health(in_csv(MEASURED[:1], tmp_path), path, SETUP, alarms)
    assert not_white(path, 0, 1) > 0.01


def test_health_without_its_columns_is_refused(tmp_path):
    with pytest.raises(ValueError, match="HealthMonitor.*3 epochs without"):
        plotting.health(ROWS, tmp_path / "health.png", SETUP)
    history = {**HISTORY, "health_alignment": [1.0]}
    with pytest.raises(ValueError, match="1 values of health_alignment, of 3"):
        plotting.health(history, tmp_path / "health.png", SETUP)
    plotting.curves(history, tmp_path / "curves.png")  # does not draw it


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("names", [[], ["cat", "dog"]])
def test_few_queries_are_drawn(count, names, tmp_path):
    path = tmp_path / "neighbours.png"
    black = np.zeros((count, 8, 8, 3), "uint8")
    labels = np.zeros((count, 4), int)
    bank = np.repeat(black[:, None], 4, axis=1)
    plotting.neighbours(black, labels[:, 0], bank, labels, names, path)
    assert not_white(path, 0, 0.5) > 0.3
    assert (not_white(path, 0.5, 1) > 0) == (count > 1)


@pytest.mark.parametrize("count", [0, 3, 9])
def test_the_nearest_images_are_drawn(count, tmp_path):
    path = tmp_path / "nearest.png"
    others = [
        (f"{i}.png", 0.5, np.zeros((8, 4 + i, 3), "uint8"))
        for i in range(count)
    ]
    plotting.nearest(np.zeros((8, 8, 3), "uint8"), others, path)
    assert not_white(path, 0, 0.2) > 0.3
    assert (not_white(path, 0.2, 1) > 0.1) == (count > 0)


NAMES = {  # and how they are drawn
    "price_$10_$20": "price_$10_$20",
    "a_$\\frac{1$": "a_$\\frac{1$",
    "%s {0} \\mu": "%s {0} \\mu",
    "two\nlines": "two\\nlines",
    "\x1b[31m": "\\x1b[31m",
    os.fsdecode(b"caf\xe9"): "caf\\xe9",
    "\u05d7\u05ea\u05d5\u05dc": "\u05d7\u05ea\u05d5\u05dc",
    "\u202eright": "\\u202eright",
    "\U0001f600": "\U0001f600",
    "\u0b95": "\\u0b95",  # which no font here has
    "\U0001f9ff": "\\U0001f9ff",
    "": "",
    " ": " ",
}


def draw_names(how, names, path):
    """Draws each of the names at least once."""
    rows = np.arange(len(names) + len(names) % 2).reshape(-1, 2) % len(names)
    images = np.zeros((*rows.shape, 8, 8, 3), "uint8")
    if how == "neighbours":
        plotting.neighbours(images[:, 0], rows[:, 0], images, rows, names, path)
    else:
        others = [(name, 0.5, images[0, 0]) for name in names]
        plotting.nearest(images[0, 0], others, path)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn."""
    found = []
    save = pictures.save
    monkeypatch.setattr(
        pictures, "save", lambda *a: (save(*a), found.append(a[0]))
    )
    return found


@pytest.fixture
def only_fonts_of_matplotlib(monkeypatch):
    manager = matplotlib.font_manager.fontManager
    data = matplotlib.get_data_path()
    own = [font for font in manager.ttflist if font.fname.startswith(data)]
    gone = matplotlib.font_manager.FontEntry("gone.ttf", name="A", weight=400)
    monkeypatch.setattr(manager, "ttflist", [gone, *own])


@pytest.mark.parametrize(
    ("how", "usetex"),
    [("neighbours", False), ("neighbours", True), ("nearest", False)],
)
def test_names_are_drawn_as_plain_text(
    how, usetex, figures, only_fonts_of_matplotlib, tmp_path
):
    with matplotlib.rc_context({"text.usetex": usetex}):
        draw_names(how, list(NAMES), tmp_path / "names.png")
    titles = {
        axes.get_title().removesuffix("\n0.500") for axes in figures[0].axes
    }
    assert titles - {"query"} == set(NAMES.values())
    assert not_white(tmp_path / "names.png", 0, 1) > 0.1


@pytest.mark.parametrize("how", ["neighbours", "nearest"])
def test_long_names_do_not_overlap(how, figures, tmp_path):
    draw_names(how, [f"{'W' * 200}{i}" for i in range(4)], tmp_path / "a.png")
    boxes = [axes.title.get_window_extent(dpi=150) for axes in figures[0].axes]
    for box, other in itertools.combinations(boxes, 2):
        assert not box.width or not other.width or not box.overlaps(other)
    drawn = {axes.get_title().partition("\n")[0] for axes in figures[0].axes}
    for i in range(4):  # their ends tell them apart
        assert any(name.endswith(f"W{i}") for name in drawn)
    assert {name for name in drawn if "..." not in name} <= {"", "query"}


def test_a_font_that_has_the_character_is_found(
    figures, only_fonts_of_matplotlib, tmp_path
):
    """Of matplotlib's own fonts, only STIX has this one."""
    draw_names("nearest", ["\u1d81"], tmp_path / "names.png")
    (title,) = (axes.title for axes in figures[0].axes[1:2])
    assert title.get_text() == "\u1d81\n0.500"
    assert title.get_family()[1:] == ["STIXGeneral"]
