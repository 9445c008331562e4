"""What a traced function would need on a GPU, from TensorFlow's registry.

The Linux wheel registers its GPU kernels on any machine. So a machine without a
GPU can tell which operations lack a kernel, and which values leave the device.
"""

import functools
from typing import NamedTuple

import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.python.framework import kernels, op_def_registry

# Types of kernels that run an operation placed on a GPU.
_PLAIN, _COMPILED = ("GPU", "DEFAULT"), ("XLA_GPU_JIT",)
# It needs only shapes, which the host knows without the values.
_ON_HOST = {"ShapeN"}
_BRANCHES = ("If", "StatelessIf", "Case", "StatelessCase")


class Report(NamedTuple):
    """The operations of a function and of all that it calls.

    Attributes:
        operations: how often each operation occurs, by name.
        missing: "operation (types)" of each one without a kernel.
        on_host: names of those that compute a value in the host's memory that
            is not known before anything runs.
        waits: "producer -> consumer" of each value that a GPU computes and a
            kernel reads from the host's memory.
    """

    operations: dict
    missing: set
    on_host: set
    waits: list


def report(concrete):
    """The `Report` of a concrete function.

    Args:
        concrete: what `get_concrete_function` of a `tf.function` returns.
    """
    tf.function(lambda: 0, jit_compile=True)()  # registers XLA's kernels
    graph = concrete.graph.as_graph_def(add_shapes=True)
    library = {f.signature.name: f for f in graph.library.function}
    result = Report({}, set(), set(), [])
    compiled = concrete.function_def.attr["_XlaMustCompile"].b
    _walk(graph.node, compiled, library, result)
    return result


def problems(report, branches=0):
    """What a training step should not have, from its `Report`.

    Args:
        branches: how often the host may branch. In mixed_float16, Keras's loss
            scaling does so once for all replicas, on whether the gradients are
            finite, and once in each replica, on whether to raise the scale.
    """
    found = sum(report.operations.get(kind, 0) for kind in _BRANCHES)
    waits = [wait for wait in report.waits if not wait.endswith(".cond")]
    return [
        *(f"no kernel: {x}" for x in sorted(report.missing)),
        *(f"on the host: {x}" for x in sorted(report.on_host - _ON_HOST)),
        *(f"waits: {x}" for x in waits),
        *([f"{found} branches"] if found != branches else []),
    ]


def _walk(nodes, compiled, library, result):
    by_name = {node.name: node for node in nodes}
    hosted = {}  # inputs and outputs of nodes in the host's memory
    for node in nodes:
        for function in _functions(node):
            inner = library[function]
            own = inner.attr["_XlaMustCompile"].b
            _walk(inner.node_def, compiled or own, library, result)
        if node.op in ("Placeholder", "NoOp") or node.op in library:
            continue
        count = result.operations
        count[node.op] = count.get(node.op, 0) + 1
        kernel = _kernel(node, _COMPILED if compiled else _PLAIN)
        if kernel is None:
            result.missing.add(_described(node))
        elif not compiled:
            hosted[node.name] = set(kernel.host_memory_arg)
    fixed = _fixed(nodes)
    for name, host in hosted.items():
        node = by_name[name]
        outputs = op_def_registry.get(node.op).output_arg
        if (
            name not in fixed
            and outputs
            and host.issuperset(output.name for output in outputs)
        ):
            result.on_host.add(node.op)
        for argument, given in zip(_inputs(node), _given(node), strict=True):
            producer, _, output = given.partition(":")
            if (
                argument.name in host
                and producer in hosted.keys() - fixed
                and (output := _output(by_name[producer], output or "0")).name
                not in hosted[producer]
                and output.type != types_pb2.DT_RESOURCE
            ):
                result.waits.append(f"{producer} -> {name}.{argument.name}")


def _fixed(nodes):
    """Names of nodes whose value is known before anything runs."""
    fixed, shapes = set(), {}
    for node in nodes:
        shapes[node.name] = node.attr["_output_shapes"].list.shape
        producers = [given.partition(":")[0] for given in _given(node)]
        known = all(
            p in shapes
            and all(dim.size >= 0 for x in shapes[p] for dim in x.dim)
            for p in producers
        )
        if (
            node.op == "Const"
            or (producers and fixed.issuperset(producers))
            or (node.op in ("Shape", "ShapeN") and known)
        ):
            fixed.add(node.name)
    return fixed


def _functions(node):
    for attr in node.attr.values():
        if attr.HasField("func"):
            yield attr.func.name
        yield from (f.name for f in attr.list.func)


def _kernel(node, devices):
    fitting = (
        kernel
        for kernel in _kernels(node.op, devices)
        if all(_allows(c, node) for c in kernel.constraint)
    )
    return next(fitting, None)


@functools.cache  # TensorFlow's registry is slow to read
def _kernels(op, devices):
    """All kernels of an operation on these devices, in the devices' order."""
    registered = kernels.get_registered_kernels_for_op(op).kernel
    plain = [
        kernel
        for kernel in registered
        if kernel.device_type in devices and not kernel.label
    ]
    return sorted(plain, key=lambda x: devices.index(x.device_type))


def _allows(constraint, node):
    attr = node.attr[constraint.name]
    types = attr.list.type if attr.HasField("list") else [attr.type]
    return set(types) <= set(constraint.allowed_values.list.type)


def _described(node):
    types = [
        f"{name}={types_pb2.DataType.Name(attr.type)[3:].lower()}"
        for name, attr in sorted(node.attr.items())
        if attr.type
    ]
    return f"{node.op} ({', '.join(types)})"


def _inputs(node):
    """A node's input arguments, each once for every tensor that it takes."""
    return _spread(op_def_registry.get(node.op).input_arg, node)


def _given(node):
    return [x for x in node.input if not x.startswith("^")]


def _output(node, name):
    """The output called "name:number" in a function, "number" in a graph."""
    outputs = op_def_registry.get(node.op).output_arg
    if name.isdigit():
        return _spread(outputs, node)[int(name)]
    name = name.partition(":")[0]
    return next(x for x in outputs if x.name == name)


def _spread(arguments, node):
    repeated = []
    for argument in arguments:
        times = 1
        if argument.number_attr:
            times = node.attr[argument.number_attr].i
        elif argument.type_list_attr:
            times = len(node.attr[argument.type_list_attr].list.type)
        repeated += times * [argument]
    return repeated
