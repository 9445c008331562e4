"""Whether the parts of an export return what the model does."""

import numpy as np
import tensorflow as tf

from moco_keras.distribution import accelerators
from moco_keras.models import model_state


def check_finite(exported, results):
    """Refuses a model that has diverged.

    Args:
        exported: an `Exported`.
        results: of its model, float32 (N, D).

    Raises:
        ValueError: if one of them is NaN or infinite.
    """
    if not np.isfinite(results).all():
        raise ValueError(
            f"An exported {exported.kind} must return numbers. Received one "
            "that returns NaN or infinity for images of noise. Export an "
            "earlier state of it, and train with `callbacks.StopOnNaN`."
        )


def check(exported, name, found, expected, tolerance):
    """Refuses a part of an export that does not return what it should.

    Args:
        exported: an `Exported`.
        name: of the part.
        found, expected: results for the same images, float32 (N, D).
        tolerance: how far apart they may be, see `tolerance_of`.

    Raises:
        ValueError: if they are farther apart.
    """
    found, expected = map(exported.comparable, (found, expected))
    error = np.max(np.abs(np.subtract(found, expected)))
    scale = np.max(np.abs(expected))
    if not error <= tolerance * scale:
        raise ValueError(
            f"`{name}` of an export must return what the "
            f"{exported.kind} does. Received {exported.numbers} of noise that "
            f"are {error:.2g} apart, where the largest number is {scale:.2g}. "
            "Nothing was exported. Look "
            "for a layer that keeps values beside its weights, and have its "
            "`save_own_variables` hold them, or one that draws random numbers "
            "in inference."
        )


def check_more(exported, name, outputs):
    """Refuses a signature whose further outputs do not follow from its results.

    Args:
        exported: an `Exported`.
        name: of the signature.
        outputs: all that it returned, tensors by name.

    Raises:
        ValueError: if one of them is not what the results say.
    """
    for key, expected in exported.more(outputs[exported.result]).items():
        if not np.array_equal(outputs[key], expected):
            raise ValueError(
                f"`{key}` of an export must follow from `{exported.result}`. "
                f"Received others from `{name}`. Nothing was exported. Export "
                "it on a CPU: CUDA_VISIBLE_DEVICES=-1."
            )


def tolerance_of(model):
    """How far apart rounding may bring numbers, as a part of the largest."""
    if accelerators.on_gpu() and (
        tf.config.experimental.tensor_float_32_execution_enabled()
    ):
        return 0.05
    return 0.05 if model_state.computes_in(model, *model_state.HALF) else 1e-4
