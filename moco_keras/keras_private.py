"""Private parts of Keras, TensorFlow and keras-cv, and why each is needed.

No other module may use any. tests/test_keras_private.py says which of them an
upgrade took away or changed.
"""

import keras

# How TensorFlow names the files of a checkpoint, after the prefix that is their
# common name, and one that is being written, anywhere in its name. Nothing
# public lists, moves or removes them.
CHECKPOINT_INDEX = ".index"
CHECKPOINT_DATA = ".data-00000-of-00001"
CHECKPOINT_PARTIAL = ".tempstate"


def flatten_layers(model):
    """The layers of a model at any depth, itself the first.

    The public list, `model.layers`, has no layers within layers.
    """
    return list(model._flatten_layers())


def parameters(layer):
    """The trainable variables of a layer alone, frozen or not.

    A frozen layer's public list is empty, and that of non-trainable variables
    holds moving statistics, too.
    """
    return list(layer._trainable_variables)


def random_states(variables):
    """Those of the variables that are states of `keras.random.SeedGenerator`s.

    They are told by their name: no public list holds them alone.
    """
    return [v for v in variables if v.name == "seed_generator_state"]


def variable_index(optimizer, variable):
    """The place of a variable among those of an optimizer.

    Keras's own optimizers find their slots by it. There is no public way for
    those of others.
    """
    return optimizer._get_variable_index(variable)


def accumulated_gradients(optimizer, variable):
    """The variable in which an optimizer adds up the gradients of another one.

    `apply` moves it by a condition that replicas cannot take, and nothing else
    in public does.
    """
    return optimizer._accumulated_gradients[variable_index(optimizer, variable)]


def num_applied(optimizer):
    """The variable that counts the calls of an optimizer's `apply`.

    The public `iterations` is a tensor with gradient accumulation, and counts
    the updates alone.
    """
    return optimizer._iterations


def learning_rate_schedule(optimizer):
    """The schedule that an optimizer was given, or None.

    The public `learning_rate` is what it is at now.
    """
    schedule = optimizer._learning_rate
    kind = keras.optimizers.schedules.LearningRateSchedule
    return schedule if isinstance(schedule, kind) else None


def in_safe_mode():
    """Whether Keras loads a file, or clones, with `safe_mode=True` now.

    Keras passes it to no `from_config`.
    """
    from keras.src.saving import serialization_lib

    return bool(serialization_lib.in_safe_mode())


def called_by_fit(evaluate_kwargs):
    """Whether `evaluate` got these further arguments from `fit`.

    `fit` gives its validation data to `evaluate` as users do, but for this.
    """
    return bool(evaluate_kwargs.get("_use_cached_eval_dataset"))


class NoSymbolicBuild:
    """Mixin of a model in which everything is built when it is made.

    Under a strategy Keras would take a batch from the data to build what is
    not, whatever `built` says.
    """

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        pass


class ConvertsInputs:
    """Mixin of a layer of keras-cv that converts its inputs itself.

    keras-cv casts images to the policy's dtype, and half precision would round
    their pixels. `autocast=False` does not prevent it.
    """

    def convert(self, values):
        """Returns one of the inputs, images or others, as a tensor."""
        raise NotImplementedError

    def _ensure_inputs_are_compute_dtype(self, inputs):
        return keras.tree.map_structure(self.convert, inputs)


def single_gather(replica):
    """A function (values, options) that joins those of all replicas, or None.

    The public `replica.all_gather` gathers shapes first, by a collective of its
    own that every other one waits for. Here shapes must be known and equal.
    Where TensorFlow no longer has it, None, the public one serves.

    Args:
        replica: TensorFlow's context of a replica.
    """
    cross_device = getattr(replica.strategy.extended, "_cross_device_ops", None)
    launchers = getattr(cross_device, "_launchers", None)
    number = getattr(replica, "_replica_id", None)
    if not launchers or number is None:
        return None
    own = launchers[number % len(launchers)]  # they are this worker's
    return getattr(own, "_all_gather", None)


def variables_to_constants(concrete_function):
    """A concrete function of TensorFlow, with its variables as constants.

    The public one is of TensorFlow 1's sessions.
    """
    from tensorflow.python.framework import convert_to_constants

    return convert_to_constants.convert_variables_to_constants_v2(
        concrete_function
    )
