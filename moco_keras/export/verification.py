"""Whether the parts of an export return what the encoder does."""

import numpy as np
import tensorflow as tf

from moco_keras.distribution import accelerators
from moco_keras.models import model_state


def check(name, found, expected, tolerance):
    """Refuses a part of an export that does not return what it should.

    Args:
        name: of the part.
        found, expected: embeddings of the same images, float32 (N, D).
        tolerance: how far apart they may be, see `tolerance_of`.

    Raises:
        ValueError: if they are farther apart.
    """
    error = np.max(np.abs(np.subtract(found, expected)))
    scale = np.max(np.abs(expected))
    if not error <= tolerance * scale:
        raise ValueError(
            f"`{name}` of an export must return what the encoder does. "
            f"Received embeddings of noise that are {error:.2g} apart, where "
            f"the largest number is {scale:.2g}. Nothing was exported. Look "
            "for a layer that keeps values beside its weights, and have its "
            "`save_own_variables` hold them, or one that draws random numbers "
            "in inference."
        )


def tolerance_of(encoder):
    """How far apart rounding may bring embeddings, as a part of the largest."""
    if accelerators.on_gpu() and (
        tf.config.experimental.tensor_float_32_execution_enabled()
    ):
        return 0.05
    half = {"bfloat16", "float16"}
    if half & {layer.compute_dtype for layer in model_state.layers(encoder)}:
        return 0.05
    return 1e-4
