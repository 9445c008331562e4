"""Keras models of users as backbones."""

import keras
import numpy as np
from keras import layers


def own_normalization(model):
    """The layer by which a model normalizes plain pixels, or None."""
    for layer in _flat(model):
        if _takes_plain_pixels(layer):
            return layer
        if layer.trainable_weights:  # where features begin
            return None
    return None


def _takes_plain_pixels(layer):
    """Whether a layer scales pixels in [0, 255] to about 1."""
    if isinstance(layer, layers.Rescaling):
        return np.max(np.abs(layer.scale)) < 0.1
    # Images that are normalized already have means around 0.
    return isinstance(layer, layers.Normalization) and (
        np.max(np.abs(getattr(layer, "mean", 0))) > 10
    )


def _flat(model):
    """The layers of a model, and of the models in it."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _flat(layer)
        else:
            yield layer


def apply(model, x):
    """Calls a model on images; errors say what a backbone must be."""
    # Only functional models have inputs and outputs before they are called.
    ends = [
        len(keras.tree.flatten(getattr(model, name, None)))
        for name in ("inputs", "outputs")
    ]
    if max(ends) > 1:
        raise ValueError(
            "`backbone` must be a model of one input and one output. Received: "
            f"{model.name!r} with {ends[0]} inputs and {ends[1]} outputs. Make "
            "one of them: `keras.Model(model.inputs[0], model.outputs[0])`, "
            "for example."
        )
    try:
        features = keras.tree.flatten(model(x))
    except ValueError as error:
        raise ValueError(
            f"`backbone` must take images of shape {x.shape}. Received a model "
            f"that takes {getattr(model, 'input_shape', 'others')}. Set "
            "`image_size` to its size."
        ) from error
    if len(features) > 1:  # of a model that is not functional
        raise ValueError(
            "`backbone` must be a model of one input and one output. Received: "
            f"{model.name!r}, which returned {len(features)} tensors. Have it "
            "return one."
        )
    (features,) = features
    if len(features.shape) not in (2, 4):
        raise ValueError(
            "`backbone` must return features (N, D) or feature maps "
            f"(N, h, w, D). Received a model that returns {features.shape}. "
            "Cut it at such a layer."
        )
    return features
