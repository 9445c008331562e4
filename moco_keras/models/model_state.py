"""The state of models: their weights, and what else their layers keep."""

import tempfile

import keras
from keras import ops

from moco_keras import keras_private

HALF = ("bfloat16", "float16")


def copy_state(source, target):
    """Copies the state of a model to another, as saving and loading would.

    It copies the weights, and whatever else a layer saves: a `Normalization`
    gets its mean and variance, a lookup its table, and a layer of yours what
    its `save_own_variables` and `save_assets` hold. Random states stay as they
    are, as when a file is loaded: two encoders must not drop the same units.

    Source and target may be the same model. Its layers then derive again what
    they derive from their weights. Do so after assigning weights one by one.

    Args:
        source: a Keras model or layer. Where variables differ between replicas,
            those of the first one are copied.
        target: one of the same structure.
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
    # What a layer merges as it saves, such as LoRA's factors, stays separate.
    target.set_weights(weights)


def layers(model):
    """The layers of a model at any depth, itself the first.

    Input layers are left out: they have no state, and copies may have more.
    """
    return [
        layer
        for layer in keras_private.flatten_layers(model)
        if not isinstance(layer, keras.layers.InputLayer)
    ]


def reconfigured(model, change):
    """Copies a model with its state, but with changes to its configs.

    Args:
        model: a functional or sequential model, of layers that Keras can load.
        change: function that gets the config of each part of the model, at any
            depth, a dict that it may change.
    """
    serialized = keras.saving.serialize_keras_object(model)
    serialized.pop("compile_config", None)
    for config in _configs(serialized):
        change(config)
    copy = keras.saving.deserialize_keras_object(serialized)
    copy_state(model, copy)
    return copy


def with_whole_batches(encoder):
    """Copies an encoder with its state, for fine-tuning on batches of any size.

    Groups of a batch and batches of all replicas are for pre-training: Keras
    compiles a step of fine-tuning, in which replicas cannot exchange
    statistics.
    """

    def by_whole_batches(config):
        if {"splits", "synchronized"} <= config.keys():
            config |= {"splits": 1, "synchronized": False}

    return reconfigured(encoder, by_whole_batches)


def computes_in(model, *dtypes):
    """Whether a layer of a model computes in one of these types, by name."""
    return any(layer.compute_dtype in dtypes for layer in layers(model))


def with_float32(model):
    """Replaces half precision in a model by float32.

    Quantized layers stay as they are.

    Args:
        model: as in `reconfigured`.

    Returns:
        The model itself, if it has no layer in half precision; else a copy.
    """
    if not computes_in(model, *HALF):
        return model

    def compute_in_float32(config):
        dtype = config.get("dtype")
        if dtype is None:
            return
        policy = keras.dtype_policies.get(dtype)
        quantized = isinstance(
            policy, keras.dtype_policies.QuantizedDTypePolicy
        )
        if policy.compute_dtype in HALF and not quantized:
            config["dtype"] = "float32"

    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")  # of layers within layers
    try:
        return reconfigured(model, compute_in_float32)
    finally:
        keras.config.set_dtype_policy(policy)


def _configs(part):
    """Yields the configs in a part of what Keras has serialized."""
    if isinstance(part, dict):
        if isinstance(part.get("config"), dict):
            yield part["config"]
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        for inner in part:
            yield from _configs(inner)
