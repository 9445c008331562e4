"""Loading trained encoders for programs that train them further."""

import keras
import pytest

import moco_keras
from moco_keras.distribution import accelerators
from moco_keras.models import model_state
from moco_keras.recipes import _trained


@pytest.mark.parametrize("is_moco", [False, True])
@pytest.mark.parametrize(
    ("trained_in", "device", "computes_in"),
    [
        ("mixed_bfloat16", "float32", "float32"),
        ("mixed_bfloat16", "mixed_bfloat16", "mixed_bfloat16"),
        ("float32", "mixed_bfloat16", "float32"),
        ("mixed_float16", "float32", "mixed_float16"),
    ],
)
def test_an_encoder_computes_in_what_the_device_has_units_for(
    trained_in, device, computes_in, is_moco, images, tmp_path, monkeypatch
):
    keras.config.set_dtype_policy(trained_in)
    encoder = model = moco_keras.build_encoder("resnet6", 8, width=4)
    if is_moco:
        model = moco_keras.MoCo(encoder, queue_size=32)
    model.save(tmp_path / "saved.keras")
    monkeypatch.setattr(accelerators, "default_precision", lambda: device)
    loaded = _trained.load(tmp_path / "saved.keras")
    assert loaded.get_layer("head_projection").dtype_policy.name == computes_in
    kinds = {layer.compute_dtype for layer in model_state.layers(loaded)}
    assert ("bfloat16" in kinds) == (computes_in == "mixed_bfloat16")
    for found, wanted in zip(loaded.weights, encoder.weights, strict=True):
        assert (found.numpy() == wanted.numpy()).all(), wanted.path
