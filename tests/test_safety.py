"""Files are data: nothing in them is executed."""

import ast
import zipfile

import keras
import numpy as np
import pytest
from programs import ROOT

import moco_keras

FORBIDDEN = {
    "cPickle",
    "cloudpickle",
    "dill",
    "enable_unsafe_deserialization",
    "eval",
    "exec",
    "joblib",
    "marshal",
    "pickle",
    "shelve",
}


def sources():
    files = [*(ROOT / "moco_keras").rglob("*.py"), *ROOT.glob("recipes/*.py")]
    assert len(files) > 30
    return files


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.name)
def test_nothing_unpickles_or_evaluates(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = {
            *(alias.name.split(".")[0] for alias in getattr(node, "names", ())),
            getattr(node, "module", None),
            getattr(node, "id", None),
            getattr(node, "attr", None),
        }
        assert not names & FORBIDDEN, f"line {node.lineno}"
        if isinstance(node, ast.keyword) and node.arg in (
            "allow_pickle",
            "safe_mode",
        ):
            raise AssertionError(f"line {node.value.lineno}: {node.arg}")


def test_a_saved_model_with_code_in_it_is_refused(make_encoder, tmp_path):
    encoder = make_encoder()
    augmenter = keras.layers.Pipeline([keras.layers.Lambda(lambda x: x * 2.0)])
    model = moco_keras.MoCo(encoder, augmenter, queue_size=32)
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        assert b"__lambda__" in file.read("config.json")
    with pytest.raises(ValueError, match="unsafe|Lambda"):
        keras.saving.load_model(tmp_path / "model.keras")


def test_arrays_of_objects_are_refused(make_model):
    """NumPy would have to unpickle them from a file."""
    images = np.empty(4, object)
    images[:] = [np.zeros((8, 8, 3), "uint8")] * 4
    with pytest.raises(ValueError, match="unequal sizes"):
        make_model().fit(images, batch_size=4)
