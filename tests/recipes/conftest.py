"""Fixtures for tests of the programs."""

import keras
import numpy as np
import pytest
from PIL import Image

import moco_keras
from moco_keras.recipes import _pictures


@pytest.fixture(scope="session")
def small_export(tmp_path_factory):
    """An export of a tiny encoder for images of 8 pixels."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, strides=2)(inputs)
    x = moco_keras.SplitBatchNormalization(2)(x)
    backbone = keras.Model(inputs, keras.layers.ReLU()(x))
    encoder = moco_keras.build_encoder(backbone, 8, 4)
    folder = tmp_path_factory.mktemp("exported") / "encoder"
    moco_keras.export_encoder(encoder, folder)
    return folder


@pytest.fixture
def no_pictures(monkeypatch):
    """Programs draw nothing, which takes seconds of each run."""
    monkeypatch.setattr(_pictures, "draw", lambda path, draw_to: None)


@pytest.fixture(scope="session")
def write_labeled():
    """Writes splits train and test; returns their folder.

    They have twelve and six images of each of two classes. The classes are dark
    and bright, and have names with special characters.
    """

    def write(place):
        rng = np.random.default_rng(0)
        for split, count in (("train", 12), ("test", 6)):
            for name, low in (("dark one", 0), ("h\u00e9ll", 128)):
                folder = place / split / name
                folder.mkdir(parents=True)
                for i in range(count):
                    pixels = rng.integers(low, low + 128, (9, 10, 3), "uint8")
                    Image.fromarray(pixels).save(folder / f"{i}.png")
        return place

    return write


@pytest.fixture
def labeled_folder(write_labeled, tmp_path):
    return write_labeled(tmp_path / "labeled")
