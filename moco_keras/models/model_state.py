"""The state of models: their weights, and what layers keep beside them."""

import tempfile

import keras
from keras import ops

from moco_keras import keras_private


def copy_state(source, target):
    """Gives a model the state of another, as saving and loading would.

    It copies the weights, and what else a layer saves: a `Normalization` gets
    its mean and variance, a lookup its table, and a layer of yours whatever its
    `save_own_variables` and `save_assets` hold. Random states are left alone,
    as a file leaves them: two encoders must not drop the same units.

    A model may be given its own state. Its layers then derive anew what they
    derive from their weights, which is due after the weights were assigned one
    by one.

    Args:
        source: a Keras model or layer. Of variables that differ between
            replicas, those of the first count.
        target: of the same structure.
    """
    weights = source.get_weights()
    for one, other in zip(layers(source), layers(target), strict=True):
        store = {}
        one.save_own_variables(store)
        other.load_own_variables(
            {name: ops.convert_to_numpy(value) for name, value in store.items()}
        )
        if hasattr(one, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                one.save_assets(folder)
                other.load_assets(folder)
    # What a layer merges when it saves, such as LoRA's factors, stays apart.
    target.set_weights(weights)


def layers(model):
    """The layers of a model at any depth, itself the first.

    Inputs are left out: they hold nothing, and copies may have more of them.
    """
    return [
        layer
        for layer in keras_private.flatten_layers(model)
        if not isinstance(layer, keras.layers.InputLayer)
    ]


def reconfigured(model, change):
    """Copies a model with its state, some of it configured otherwise.

    Args:
        model: a functional or sequential model, of layers that Keras can load.
        change: function that is given the config of each part of the model, at
            any depth, a dict that it may alter.
    """
    serialized = keras.saving.serialize_keras_object(model)
    serialized.pop("compile_config", None)
    for config in _configs(serialized):
        change(config)
    copy = keras.saving.deserialize_keras_object(serialized)
    copy_state(model, copy)
    return copy


def _configs(part):
    """Yields the configs in a part of what Keras has serialized."""
    if isinstance(part, dict):
        if isinstance(part.get("config"), dict):
            yield part["config"]
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        for inner in part:
            yield from _configs(inner)
