"""Private names of Keras, TensorFlow and keras-cv still do what we need."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import keras
import keras_cv
import numpy as np
import pytest
import tensorflow as tf

from moco_keras import keras_private

HERE = Path(keras_private.__file__)
MODULES = sorted(set(HERE.parent.rglob("*.py")) - {HERE})
# Methods of Keras and keras-cv that we override.
HOOKS = {"_maybe_symbolic_build", "_ensure_inputs_are_compute_dtype"}
PRIVATE_MODULES = ("keras.src", "keras_cv.src", "tensorflow.python")
PRIVATE_TEXTS = (
    "seed_generator_state",
    "_use_cached_eval_dataset",
    "_cross_device_ops",
    f"*{keras_private.CHECKPOINT_INDEX}",
    keras_private.CHECKPOINT_DATA,
    keras_private.CHECKPOINT_PARTIAL,
)


def require(owner, name):
    """Fails with a clear message if an upgrade removed a private name."""
    assert hasattr(owner, name), (
        f"{owner} no longer has `{name}` in Keras {keras.__version__} and "
        f"TensorFlow {tf.__version__}. Find another way in keras_private.py."
    )


def is_private(name):
    return name.startswith("_") and not name.endswith("__")


@functools.cache
def own_names():
    """Names that the package defines, and public ones with an underscore."""
    names = {"_replace", "_asdict", "_exit"}  # of named tuples, and of `os`
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.alias):
                names.add(node.name.rpartition(".")[2])
            elif isinstance(getattr(node, "ctx", None), ast.Store):
                names.add(getattr(node, "id", getattr(node, "attr", None)))
    return names - HOOKS


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_only_keras_private_uses_private_names(module):
    used = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            used |= {node.attr} - own_names()
        elif isinstance(node, ast.FunctionDef):
            used |= {node.name} & HOOKS
        elif isinstance(node, ast.ImportFrom):
            used |= {x for x in PRIVATE_MODULES if node.module.startswith(x)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used |= {text for text in PRIVATE_TEXTS if text in node.value}
    assert not used, f"These belong in keras_private.py, and not in {module}."


@pytest.fixture
def model():
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    inputs = keras.Input((3,))
    outputs = keras.layers.BatchNormalization()(inner(inputs))
    return keras.Model(inputs, outputs)


def test_flatten_layers(model):
    require(model, "_flatten_layers")
    found = keras_private.flatten_layers(model)
    assert found[0] is model
    (inner,) = (x for x in found if isinstance(x, keras.Sequential))
    assert inner.layers[0] in found
    assert sum(isinstance(x, keras.layers.Dense) for x in found) == 1


def test_parameters_of_a_frozen_layer(model):
    layer = model.layers[-1]
    require(layer, "_trainable_variables")
    layer.trainable = False
    assert not layer.trainable_variables
    expected = [layer.gamma, layer.beta]
    assert [v.path for v in keras_private.parameters(layer)] == [
        v.path for v in expected
    ]


def test_parameters_are_of_the_layer_alone(model):
    assert keras_private.parameters(model) == []


def test_random_states():
    layers = [keras.layers.Dense(1), keras.layers.Dropout(0.5, seed=3)]
    model = keras.Sequential([keras.Input((2,)), *layers])
    states = keras_private.random_states(model.variables)
    assert [v.numpy().tolist() for v in states] == [[3, 0]], (
        "Keras has another name for the state of a `SeedGenerator` than "
        f"{keras_private.__name__} expects: "
        f"{layers[1].seed_generator.state.name}."
    )


@pytest.fixture
def variables():
    return [keras.Variable([1.0, 2.0]), keras.Variable([3.0])]


def test_variable_index(variables):
    optimizer = keras.optimizers.SGD()
    require(optimizer, "_get_variable_index")
    optimizer.build(variables)
    for index, variable in enumerate(variables):
        assert keras_private.variable_index(optimizer, variable) == index


def test_accumulated_gradients_and_the_count(variables):
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=3)
    optimizer.build(variables)
    require(optimizer, "_accumulated_gradients")
    require(optimizer, "_iterations")
    gradients = [tf.constant([1.0, 2.0]), tf.constant([4.0])]
    for _ in range(2):
        optimizer.apply(gradients, variables)
    for gradient, variable in zip(gradients, variables, strict=True):
        found = keras_private.accumulated_gradients(optimizer, variable)
        np.testing.assert_array_equal(found, 2 * gradient)
    assert int(keras_private.num_applied(optimizer)) == 2
    assert int(optimizer.iterations) == 0
    keras_private.num_applied(optimizer).assign_add(1)
    assert int(optimizer.iterations) == 1


def test_learning_rate_schedule():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    optimizer = keras.optimizers.SGD(schedule)
    require(optimizer, "_learning_rate")
    assert keras_private.learning_rate_schedule(optimizer) is schedule
    plain = keras.optimizers.SGD(0.1)
    assert keras_private.learning_rate_schedule(plain) is None


@keras.saving.register_keras_serializable(package="test_keras_private")
class RecordsSafeMode(keras.layers.Layer):
    """A layer whose `from_config` records whether safe mode is on."""

    found = None

    @classmethod
    def from_config(cls, config):
        cls.found = keras_private.in_safe_mode()
        return cls(**config)


@pytest.mark.parametrize("safe_mode", [True, False])
def test_in_safe_mode(safe_mode, tmp_path):
    from keras.src.saving import serialization_lib

    require(serialization_lib, "in_safe_mode")
    assert not keras_private.in_safe_mode()
    model = keras.Sequential([keras.Input((2,)), RecordsSafeMode()])
    model.save(tmp_path / "model.keras")
    keras.models.load_model(tmp_path / "model.keras", safe_mode=safe_mode)
    assert RecordsSafeMode.found is safe_mode


class Evaluated(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = keras.layers.Dense(1)
        self.by_fit = []

    def call(self, x):
        return self.head(x)

    def evaluate(self, *args, **kwargs):
        self.by_fit.append(keras_private.called_by_fit(kwargs))
        return super().evaluate(*args, **kwargs)


def test_called_by_fit():
    x, y = np.ones((4, 2)), np.ones((4, 1))
    model = Evaluated()
    model.compile(loss="mse")
    model.fit(x, y, validation_data=(x, y), verbose=0)
    model.evaluate(x, y, verbose=0)
    assert model.by_fit == [True, False], (
        "`fit` no longer tells `evaluate` that it calls it in the way that "
        "keras_private.called_by_fit expects."
    )


class WithoutSymbolicBuild(keras_private.NoSymbolicBuild, Evaluated):
    pass


def test_no_symbolic_build():
    require(keras.Model, "_maybe_symbolic_build")
    taken = []

    def rows():
        for i in range(4):
            taken.append(i)
            yield np.ones(2, "float32"), np.ones(1, "float32")

    dataset = tf.data.Dataset.from_generator(
        rows,
        output_signature=(
            tf.TensorSpec((2,), "float32"),
            tf.TensorSpec((1,), "float32"),
        ),
    )
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(4)).batch(2)
    counts = []
    for kind in (Evaluated, WithoutSymbolicBuild):
        with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
            model = kind()
            model(np.ones((1, 2)))
            model.compile(loss="mse")
        taken.clear()
        model.fit(dataset, shuffle=False, verbose=0)
        counts.append(len(taken))
    assert counts[1] == 4
    assert counts[0] > 4, (
        "Keras no longer takes a batch to build a model that is built. "
        "`keras_private.NoSymbolicBuild` can go."
    )


class ConvertsToFloat32(
    keras_private.ConvertsInputs,
    keras_cv.layers.VectorizedBaseImageAugmentationLayer,
):
    def convert(self, values):
        return tf.cast(values, "float32")

    def augment_images(self, images, **kwargs):
        return images


def test_converts_inputs():
    base = keras_cv.layers.VectorizedBaseImageAugmentationLayer
    require(base, "_ensure_inputs_are_compute_dtype")
    layer = ConvertsToFloat32(seed=1, dtype="mixed_float16")
    image = np.full((4, 4, 3), 200.3, "float32")
    assert layer(image).dtype == "float32"
    np.testing.assert_array_equal(layer(image), image)


GATHER = """
import tensorflow as tf
from moco_keras import keras_private

(cpu,) = tf.config.list_physical_devices("CPU")
two = 2 * [tf.config.LogicalDeviceConfiguration()]
tf.config.set_logical_device_configuration(cpu, two)
strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])


@tf.function
def step():
    def run():
        replica = tf.distribute.get_replica_context()
        gather = keras_private.single_gather(replica)
        assert gather is not None, "TensorFlow's is gone"
        number = tf.cast(replica.replica_id_in_sync_group, "float32")
        return gather(tf.fill((2, 3), number), None)

    return strategy.run(run)


for joined in strategy.experimental_local_results(step()):
    assert joined.numpy().tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
"""


def test_single_gather():
    """In its own process: on a CPU, a second set of collectives breaks."""
    done = subprocess.run(
        [sys.executable, "-c", GATHER], capture_output=True, text=True
    )
    assert not done.returncode, (
        "TensorFlow's private gather differs: replicas would use the public "
        f"one, which waits twice as often.\n{done.stderr}"
    )


def test_files_of_a_checkpoint(tmp_path):
    def save(tensors):
        tf.raw_ops.SaveV2(
            prefix=str(tmp_path / "prefix"),
            tensor_names=["x"],
            shape_and_slices=[""],
            tensors=tensors,
        )

    save([tf.ones(3)])
    names = {path.name for path in tmp_path.iterdir()}
    suffixes = keras_private.CHECKPOINT_INDEX, keras_private.CHECKPOINT_DATA
    assert names == {f"prefix{suffix}" for suffix in suffixes}
    # A file that cannot be renamed keeps its temporary name.
    data = tmp_path / f"prefix{keras_private.CHECKPOINT_DATA}"
    data.unlink()
    data.mkdir()
    with pytest.raises(tf.errors.OpError):
        save([tf.ones(3)])
    partial = {path.name for path in tmp_path.iterdir()} - names
    assert partial, "TensorFlow leaves nothing behind"
    for name in partial:
        assert keras_private.CHECKPOINT_PARTIAL in name


def test_files_of_a_saved_model(tmp_path):
    module = tf.Module()
    module.x = tf.Variable(tf.ones(3))
    tf.saved_model.save(module, str(tmp_path))
    names = {path.name for path in (tmp_path / "variables").iterdir()}
    assert f"variables{keras_private.CHECKPOINT_DATA}" in names


def test_variables_to_constants():
    variable = tf.Variable(2.0)
    function = tf.function(
        lambda x: x * variable, input_signature=[tf.TensorSpec((), "float32")]
    )
    constant = keras_private.variables_to_constants(
        function.get_concrete_function()
    )
    variable.assign(5.0)
    assert not constant.variables
    (result,) = constant(tf.constant(3.0))
    assert float(result) == 6.0
