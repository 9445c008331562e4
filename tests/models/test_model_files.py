import os
import re

import keras
import numpy as np
import pytest

import moco_keras
from moco_keras.models import model_files
from moco_keras.recipes import export


@pytest.fixture
def model(tmp_path):
    """A small model, and its file."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    path = tmp_path / "m.keras"
    model.save(path)
    return model, path


def test_a_file_with_a_flipped_bit_is_refused(model):
    """Wherever the bit is, no wrong weight is loaded."""
    model, path = model
    whole = path.read_bytes()
    weights = model.get_weights()
    refused = 0
    for position in range(0, len(whole), 61):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            loaded = model_files.load(path, "--flag")
        except ValueError as error:
            refused += 1
            for words in ("--flag must be", str(path), "Bring it back"):
                assert words in str(error)
        else:  # a bit without effect, such as one of a time
            for a, b in zip(loaded.get_weights(), weights, strict=True):
                np.testing.assert_array_equal(a, b)
    assert refused > 0.95 * len(whole) / 61


def test_a_flipped_bit_in_a_name_within_the_file_is_explained(model):
    path = model[1]
    content = path.read_bytes()
    end = content.rindex(b"config.json")  # in the directory at the end
    refused = 0
    for position in range(end - 46, end + 11):
        damaged = bytearray(content)
        damaged[position] ^= 1 << 7
        path.write_bytes(damaged)
        try:
            model_files.load(path, "--flag")
        except ValueError as error:
            refused += 1
            assert "Bring it back" in str(error)
    assert refused > 20


@pytest.mark.parametrize("length", [0, 1, 100, 5000, -1])
def test_a_file_that_is_cut_short_is_refused(length, model, tmp_path):
    path = model[1]
    path.write_bytes(path.read_bytes()[:length])
    settings = export.ExportSettings(model=str(path), path=str(tmp_path / "e"))
    with pytest.raises(ValueError, match=f"--model must be.*{path}, which is"):
        export.export(settings)
    assert not (tmp_path / "e").exists()


def test_messages_show_paths_as_text(model, tmp_path):
    """Whatever bytes they hold, in every program."""
    name = os.fsdecode(b"caf\xe9.keras")
    model[1].rename(tmp_path / name)
    shown = re.escape(r"caf\xe9.keras")
    with pytest.raises(ValueError, match=f"--path must.*{shown}"):
        export.export(export.ExportSettings(model=str(tmp_path / name)))
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=f"{shown}, which is damaged"):
        model_files.load(tmp_path / name, "--model")
    gone = str(tmp_path / f"gone{name}")
    with pytest.raises(FileNotFoundError, match=f"gone{shown}"):
        export.export(export.ExportSettings(model=gone))
    with pytest.raises(FileNotFoundError, match=f"gone{shown}"):
        moco_keras.load_encoder(gone)
