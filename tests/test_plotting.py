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
