"""What PyTorch computed; see fixtures/make_fixtures.py."""

import re
from pathlib import Path

import numpy as np


def load(name):
    with np.load(
        Path(__file__).parents[1] / "fixtures" / f"{name}.npz"
    ) as file:
        return dict(file)


def part(values, prefix):
    """The values whose names begin with `prefix/`, by the rest of the name."""
    prefix = f"{prefix}/"
    return {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix)
    }


def to_keras(weight):
    """Transposes weights (O, I, H, W) or (O, I), or a vector, for Keras."""
    return weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T


def keras_variable(encoder, name):
    """The variable of our ResNet that is called `name` in torchvision's."""
    layer, kind = name.rsplit(".", 1)
    for pattern, ours in (
        (r"^(conv|bn)1$", r"stem_\1"),
        (r"^layer(\d)\.", r"stage\1_block"),
        (r"(?<=block)\d+\.", lambda m: f"{int(m[0][:-1]) + 1}_"),
        (r"downsample\.0", "shortcut_conv"),
        (r"downsample\.1", "shortcut_bn"),
        (r"^fc\.0$", "head_hidden"),
        (r"^fc(\.2)?$", "head_projection"),
    ):
        layer = re.sub(pattern, ours, layer)
    kinds = {
        "weight": "gamma" if "bn" in layer else "kernel",
        "bias": "beta" if "bn" in layer else "bias",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }
    return getattr(encoder.get_layer(layer), kinds[kind])
