"""The float64 twin of a frozen graph of TensorFlow, which tells the rounding error of the graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from syncbn_convert.keras.functions import function_of

_CAST = {tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum, tf.float32.as_datatype_enum}
_DOUBLE = tf.float64.as_datatype_enum
_LARGEST_GRAPH = 256 * 1024 * 1024
_OPTIMIZER_OFF = "disable_meta_optimizer"
_FUSED = "FusedBatchNormV3"


class NoTwinError(Exception):
    """The graph has no float64 twin."""


def build_twin(frozen: Any) -> Callable[..., list[Any]]:
    """Return a function that computes what `frozen` does, every float in double precision.

    Raises:
        NoTwinError: if an operator has no float64 kernel, or the graph is beyond 256 MiB.
    """
    graph = frozen.graph.as_graph_def(add_shapes=True)
    if graph.ByteSize() > _LARGEST_GRAPH or len(graph.library.function):
        raise NoTwinError
    twin = tf.compat.v1.GraphDef(versions=graph.versions)
    for node in graph.node:
        spelled = _spell_out(node) if node.op == _FUSED else [node]
        twin.node.extend(map(_widened, spelled))
    try:
        pruned = function_of(twin, frozen.inputs, frozen.outputs)
    except Exception as error:  # whatever an operator says of float64
        raise NoTwinError from error

    def run(*values: Any) -> list[Any]:
        with _unoptimized():
            return list(pruned(*values))

    return run


@contextlib.contextmanager
def _unoptimized() -> Iterator[None]:
    """Run functions as they are written.

    TensorFlow 2.21's constant folding ends the process (`Check failed: size >= 0`) at a product of
    a convolution and a constant of unknown shape.
    """
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({_OPTIMIZER_OFF: True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({_OPTIMIZER_OFF: before[_OPTIMIZER_OFF]})


def _widened(node: Any) -> Any:
    """Return a node with every floating type, and every tensor of one, in double precision."""
    wide = tf.compat.v1.NodeDef()
    wide.CopyFrom(node)
    wide.attr.pop("_output_shapes", None)
    for attribute in wide.attr.values():
        if attribute.type in _CAST:
            attribute.type = _DOUBLE
        for at, kind in enumerate(attribute.list.type):
            if kind in _CAST:
                attribute.list.type[at] = _DOUBLE
        if attribute.tensor.dtype in _CAST:
            values = tf.make_ndarray(attribute.tensor).astype(np.float64)
            attribute.tensor.CopyFrom(tf.make_tensor_proto(values))
    return wide


def _spell_out(node: Any) -> list[Any]:
    """Write a fused normalization, which has no float64 kernel, in elementwise operators."""
    if node.attr["is_training"].b:
        raise NoTwinError
    made: list[Any] = []
    x, parameters = node.input[0], list(node.input[1:5])
    if node.attr["data_format"].s.startswith(b"NC"):
        rank = len(node.attr["_output_shapes"].list.shape[0].dim)
        shape = _constant(f"{node.name}/shape", np.array([1, -1] + [1] * (rank - 2), np.int32))
        made.append(shape)
        for at, source in enumerate(parameters):
            made.append(_operator("Reshape", f"{node.name}/reshape_{at}", source, shape.name))
            made[-1].attr["Tshape"].type = tf.int32.as_datatype_enum
            parameters[at] = made[-1].name
    gamma, beta, mean, variance = parameters
    made.append(_constant(f"{node.name}/epsilon", np.float64(node.attr["epsilon"].f)))
    steps = (
        ("AddV2", "variance", variance, made[-1].name),
        ("Rsqrt", "rsqrt", f"{node.name}/variance"),
        ("Mul", "factor", gamma, f"{node.name}/rsqrt"),
        ("Sub", "centered", x, mean),
        ("Mul", "scaled", f"{node.name}/centered", f"{node.name}/factor"),
    )
    made += [_operator(op, f"{node.name}/{name}", *sources) for op, name, *sources in steps]
    return [*made, _operator("AddV2", node.name, f"{node.name}/scaled", beta)]


def _operator(op: str, name: str, *sources: str) -> Any:
    node = tf.compat.v1.NodeDef(name=name, op=op, input=sources)
    node.attr["T"].type = _DOUBLE
    return node


def _constant(name: str, values: Any) -> Any:
    node = tf.compat.v1.NodeDef(name=name, op="Const")
    tensor = tf.make_tensor_proto(values)
    node.attr["dtype"].type = tensor.dtype
    node.attr["value"].tensor.CopyFrom(tensor)
    return node
