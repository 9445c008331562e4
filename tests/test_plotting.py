import csv

import keras
import numpy as np
import pytest
from PIL import Image

from moco_keras import plotting


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


def of_csv_logger(folder):
    """What Keras's logger writes, of epochs of which one lacks kNN."""
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
    save = plotting._save
    monkeypatch.setattr(
        plotting, "_save", lambda *a: (figures.append(a[0]), save(*a))
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
        of_csv_logger,
        lambda folder: [{**r, "epoch": np.int64(r["epoch"])} for r in ROWS],
    ],
    ids=["dicts", "csv", "csv_logger", "numpy"],
)
@pytest.mark.parametrize("untrained", [None, 0.2])
@pytest.mark.parametrize("raw_pixels", [None, 0.35])
def test_curves_are_those_of_the_epochs(
    form, untrained, raw_pixels, draw, tmp_path
):
    lines = draw(form(tmp_path), untrained=untrained, raw_pixels=raw_pixels)
    before = [] if untrained is None else [[0, untrained]]
    assert lines == {
        "kNN accuracy": [[*before, [1, 0.3], [3, 0.5]]],
        "InfoNCE loss, nats": [[[1, 8.0], [2, 9.5], [3, 2.5]]],
        "contrastive accuracy": [[[1, 0.25], [2, 0.5], [3, 0.75]]],
    }


def test_curves_of_what_fit_returns(draw, make_model, images):
    fitted = make_model().fit(images, batch_size=8, epochs=2, verbose=0)
    lines = draw(fitted)
    assert lines == draw(fitted.history)
    losses = [list(x) for x in zip((1, 2), fitted.history["loss"], strict=True)]
    assert lines["InfoNCE loss, nats"] == [losses]
    assert len(lines) == 2


def test_curves_of_a_history_with_knn_in_every_epoch(draw):
    lines = draw(HISTORY)
    assert lines["kNN accuracy"] == [[[1, 0.3], [2, 0.4], [3, 0.5]]]
    # An untrained encoder's alone.
    rows = [{k: v for k, v in row.items() if k != "knn"} for row in ROWS]
    assert draw(rows, untrained=0.2)["kNN accuracy"] == [[[0, 0.2]]]


@pytest.mark.parametrize(
    ("epochs", "message"),
    [
        ([], "one or more. Received 0 epochs"),
        ({}, "one or more. Received 0 epochs"),
        ([{"loss": 1.0}], "1 epochs, 0 with contrastive_accuracy"),
        ([ROWS[0], {"epoch": 2}], "2 epochs, 1 with loss"),
        ({**HISTORY, "knn": [0.3, 0.5]}, "2 values of 3 epochs.*CSVLogger"),
        ([{**ROWS[0], "loss": "high"}], "numbers. Received: loss='high'"),
    ],
)
def test_epochs_that_cannot_be_drawn(epochs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plotting.curves(epochs, tmp_path / "curves.png")


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
def test_the_nearest_are_drawn(count, tmp_path):
    path = tmp_path / "nearest.png"
    others = [
        (f"{i}\n0.5", np.zeros((8, 4 + i, 3), "uint8")) for i in range(count)
    ]
    plotting.nearest(np.zeros((8, 8, 3), "uint8"), others, path)
    assert not_white(path, 0, 0.2) > 0.3
    assert (not_white(path, 0.2, 1) > 0.1) == (count > 0)
