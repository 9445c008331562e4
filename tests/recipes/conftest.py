"""Fixtures for tests of the programs."""

import keras
import numpy as np
import pytest
from PIL import Image

import moco_keras


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
def labeled_folder(tmp_path):
    """Splits train and test; twelve and six images of each of two classes.

    The classes are dark and bright, and have names with special characters.
    """
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for name, low in (("dark one", 0), ("h\u00e9ll", 128)):
            folder = tmp_path / "labeled" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(low, low + 128, (9, 10, 3), "uint8")
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "labeled"
