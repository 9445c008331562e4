import itertools

import numpy as np
import pytest

from moco_keras.plotting import classification


@pytest.mark.parametrize("lowest", [0.05, 0.3, 0.72, 0.99])
def test_lines_of_few_labels_are_seen_and_names_apart(lowest, monkeypatch):
    figures = []
    monkeypatch.setattr(
        classification, "save", lambda figure, path: figures.append(figure)
    )
    rows = [
        {
            "labels_per_class": amount,
            "method": method,
            "mean": mean,
            "standard_error": 0.001,
        }
        for amount, mean in ((10, lowest), ("50%", 1.0))
        for method in ("scratch", "probe", "finetuned")
    ]
    classification.few_labels(rows, "few_labels.png")
    (axes,) = figures[0].axes
    bottom, top = axes.get_ylim()
    assert 0 <= bottom < lowest and top == 1
    for line in axes.lines:
        assert min(line.get_ydata()) == lowest
    assert [x.get_text() for x in axes.get_xticklabels()] == ["10", "50%"]
    figures[0].canvas.draw()
    boxes = [x.get_window_extent() for x in axes.texts]
    assert len(boxes) == 3
    for a, b in itertools.combinations(boxes, 2):
        assert not a.overlaps(b)


def test_mistakes_say_which_channels_they_show(monkeypatch):
    figures = []
    monkeypatch.setattr(
        classification, "save", lambda figure, *_: figures.append(figure)
    )
    picture = np.zeros((8, 8, 3), "uint8")
    for channels in (5, 3):
        classification.mistakes(
            [(0.9, 0, 1, picture)], ["a", "b"], "mistakes.png", channels
        )
    said = [[text.get_text() for text in figure.texts] for figure in figures]
    assert said == [["Of 5 channels, channels 1, 2 and 3 are shown."], []]
