"""Files of an earlier version load, and its runs resume."""

import importlib.util
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

import moco_keras
from moco_keras.data import textures

SAVED = Path(__file__).parent / "fixtures/saved"


@pytest.fixture
def images():
    return textures.draw(4, seed=1)[0]


@pytest.fixture
def values():
    return np.load(SAVED / "values.npz")


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_model_loads_and_trains(images, values):
    model = keras.models.load_model(SAVED / "model.keras")
    assert_close(model.predict(images, verbose=0), values["projections"])
    assert int(model.steps) == int(model.optimizer.iterations) == 3
    assert int(model.queue.pointer) == 24
    history = model.fit(textures.draw(24, seed=0)[0], batch_size=8, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


@pytest.mark.slow
def test_a_run_resumes(images, values, tmp_path):
    """It ends as it did with the earlier version."""
    path = SAVED.parent / "make_saved.py"
    spec = importlib.util.spec_from_file_location("make_saved", path)
    make_saved = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_saved)
    shutil.copytree(SAVED / "checkpoints", tmp_path / "checkpoints")
    model = make_saved.make_model()
    history = make_saved.train(model, 2, tmp_path / "checkpoints")
    assert history.epoch == [1]
    assert_close(history.history["loss"], values["loss"])
    assert_close(model.predict(images, verbose=0), values["trained"])


def test_an_export_loads(images, values):
    encoder = moco_keras.load_encoder(SAVED / "encoder")
    features = encoder(images).numpy()
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    assert_close(features, values["features"])
    backbone = keras.models.load_model(SAVED / "encoder/1/encoder.keras")
    assert backbone.count_params() > 0
