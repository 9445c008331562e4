"""A GPU has a kernel for all of a step, and nothing waits for its values."""

import kernels
import pytest
import replicas
import tensorflow as tf

from moco_keras.distribution import accelerators
from moco_keras.momentum import MomentumUpdate


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    monkeypatch.setattr(accelerators, "on_gpu", lambda: True)


def kinds_of_steps():
    """All kinds; those that add no part of their own are slow or left out."""
    for pipeline in replicas.PIPELINES:
        for precision in replicas.PRECISIONS:
            if pipeline != "moco_v2" and precision != "float32":
                continue  # views are cut in float32 whatever the precision
            repeats = pipeline != "moco_v2" or precision == "mixed_bfloat16"
            marks = [pytest.mark.slow] if repeats else []
            yield pytest.param(pipeline, precision, marks=marks)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(("pipeline", "precision"), list(kinds_of_steps()))
def test_a_step_has_all_kernels_and_never_waits(
    pipeline, precision, jit_compile
):
    step = replicas.traced_step(pipeline, precision, jit_compile)
    report = kernels.report(step)
    assert report.operations["Conv2DBackpropFilter"] == 20
    assert report.operations["MaxPoolGrad"] == 1
    branches = 2 if precision == "mixed_float16" else 0
    assert kernels.problems(report, branches) == []


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_step_on_batches_of_unknown_size(jit_compile):
    images = tf.TensorSpec((None, 8, 8, 3), "uint8")
    step = replicas.traced_step("cifar", "float32", jit_compile, images=images)
    report = kernels.report(step)
    assert report.missing == set()
    # Without XLA, the gradient of a mean asks for the size of its input.
    assert len(report.waits) == (0 if jit_compile else 2)


def test_missing_kernels_are_found():
    """They are found with and without XLA, and in functions that are called."""

    @tf.function
    def on_cpus_only(x):
        return tf.raw_ops.ScaleAndTranslate(
            images=x, size=[4, 4], scale=[1.0, 1.0], translation=[0.0, 0.0]
        )

    @tf.function
    def calling(x):
        return on_cpus_only(x) + 1

    image = tf.TensorSpec((1, 8, 8, 3))
    report = kernels.report(calling.get_concrete_function(image))
    assert report.missing == {"ScaleAndTranslate (T=float)"}
    compiled = tf.function(calling, jit_compile=True)
    report = kernels.report(compiled.get_concrete_function(image))
    assert report.missing == {"ScaleAndTranslate (T=float)"}
    gather = tf.function(
        lambda x: tf.raw_ops.CollectiveGatherV2(
            input=x,
            group_size=1,
            group_key=1,
            instance_key=1,
            ordering_token=[],
        )
    )
    # It has a kernel, but not for XLA.
    report = kernels.report(gather.get_concrete_function(image))
    assert report.missing == set()
    compiled = tf.function(gather, jit_compile=True)
    report = kernels.report(compiled.get_concrete_function(image))
    assert report.missing == {"CollectiveGatherV2 (T=float)"}


def test_waits_are_found():
    @tf.function
    def waiting(x):
        index = tf.argmax(x, output_type="int32") + 1
        return tf.cond(index > 2, lambda: x, lambda: 2 * x)

    report = kernels.report(waiting.get_concrete_function(tf.TensorSpec((4,))))
    assert [wait.split(" -> ")[1] for wait in report.waits] == ["add.x"]
    assert report.on_host >= {"AddV2", "Greater"}


def test_the_momentum_update_has_all_kernels():
    model = replicas.make_model(1)
    update = MomentumUpdate()
    update.set_model(model)
    update.on_train_begin()
    update.on_train_batch_end(0)
    report = kernels.report(update._update.get_concrete_function())
    assert report.operations["AssignVariableOp"] == 6
    assert kernels.problems(report) == []
    inner = update._update.get_concrete_function().graph.as_graph_def().library
    compiled = [f.attr["_XlaMustCompile"].b for f in inner.function]
    assert any(compiled)
