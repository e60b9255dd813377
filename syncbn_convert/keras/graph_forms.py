"""Inference forms of batch normalization in a frozen graph of TensorFlow, and markers for them.

A graph that was traced long ago holds no layers any more, only what they computed, on variables:

    FusedBatchNormV3(x, gamma, beta, mean, variance)                        tf_keras, fused
    x * inv + (beta - mean * inv), inv = Rsqrt(variance + epsilon) * gamma  both, not fused

where gamma, beta or both may be missing (without beta, Keras writes `x * inv + (-mean) * inv`).
What is not exactly of these forms stays as it is.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import tensorflow as tf

_PASSING = ("Identity", "ReadVariableOp")
_AXIS_OF_FORMAT = {"NHWC": 3, "NCHW": 1, "NDHWC": 4, "NCDHW": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphForm:
    """A batch normalization.

    Attributes:
        output: Name of the node that returns it.
        x: Its input, as nodes name it.
        axis: Channel axis.
        rank: Number of axes.
        epsilon: Added to the variance.
        parameters: Names of the constants of variables, by the layer's names for them.
        fused: Whether it is one operator of TensorFlow, whose training keeps unbiased variances.
    """

    output: str
    x: str
    axis: int
    rank: int
    epsilon: float
    parameters: dict[str, str]
    fused: bool = False


class NoFormError(Exception):
    """A node does not belong to a form."""


def find_forms(graph: Any, variables: Collection[str]) -> list[GraphForm]:
    """Return the forms in a frozen graph definition with shapes, in its order.

    Args:
        graph: The definition.
        variables: Names of the constants that hold values of variables.
    """
    reader = _Reader(graph, variables)
    found = []
    for node in graph.node:
        read = _READERS.get(node.op)
        if read is not None:
            try:
                found.append(read(reader, node))
            except NoFormError:
                continue
    return found


def mark_forms(
    graph: Any, forms: Collection[GraphForm], index_of: Callable[[GraphForm], int]
) -> None:
    """Put markers in place of forms, as `markers` traces them; `index_of` tells the layer's."""
    nodes = {node.name: node for node in graph.node}
    for form in forms:
        last = nodes[form.output]
        dtype = last.attr["T"].type
        shape = tf.TensorShape(last.attr["_output_shapes"].list.shape[0]).as_proto()
        precise = dtype if dtype == tf.float64.as_datatype_enum else tf.float32.as_datatype_enum
        wide, marked, shaped = (f"{form.output}/{end}" for end in ("wide", "marked", "shaped"))
        if dtype == precise:
            wide, shaped = form.x, form.output
        else:
            graph.node.append(_cast(wide, form.x, dtype, precise))
        marker = _node("PyFunc", marked, wide)
        marker.attr["token"].s = json.dumps([index_of(form), form.axis, form.rank]).encode()
        marker.attr["Tin"].list.type.append(precise)
        marker.attr["Tout"].list.type.append(precise)
        ensured = _node("EnsureShape", shaped, marked)
        ensured.attr["T"].type = precise
        ensured.attr["shape"].shape.CopyFrom(shape)
        graph.node.append(marker)
        if dtype == precise:
            last.CopyFrom(ensured)
        else:
            graph.node.append(ensured)
            last.CopyFrom(_cast(form.output, shaped, precise, dtype))


def _cast(name: str, source: str, old: int, new: int) -> Any:
    node = _node("Cast", name, source)
    node.attr["SrcT"].type, node.attr["DstT"].type = old, new
    return node


def _node(op: str, name: str, source: str) -> Any:
    return tf.compat.v1.NodeDef(name=name, op=op, input=[source])


class _Reader:
    """A graph definition, by names."""

    def __init__(self, graph: Any, variables: Collection[str]) -> None:
        self._nodes = {node.name: node for node in graph.node}
        self._variables = variables
        self._readers: dict[str, list[Any]] = defaultdict(list)
        for node in graph.node:
            for source in node.input:
                if not source.startswith("^"):
                    self._readers[source.removesuffix(":0")].append(node)

    def producer(self, source: str) -> Any:
        """Return the node that makes a value, through those that only pass it on."""
        node = self._nodes[source.partition(":")[0]]
        while node.op in _PASSING:
            node = self._nodes[node.input[0].partition(":")[0]]
        return node

    def readers(self, node: Any, op: str, count: int | None = None) -> list[Any]:
        """Return what reads a node, all of one operator, and as many."""
        found = self._readers[node.name]
        if count not in (None, len(found)) or any(reader.op != op for reader in found):
            raise NoFormError
        return found

    def constant(self, source: str) -> Any:
        """Return the value of a constant that is no variable."""
        node = self.producer(source)
        if node.op != "Const" or node.name in self._variables:
            raise NoFormError
        return tf.make_ndarray(node.attr["value"].tensor)

    def variable(self, source: str) -> tuple[str, tuple[int, ...] | None]:
        """Return the variable that a value is, and the shape that it is given to be broadcast."""
        node, shape = self.producer(source), None
        if node.op == "Reshape":
            shape = tuple(int(size) for size in self.constant(node.input[1]))
            node = self.producer(node.input[0])
        if node.name not in self._variables:
            raise NoFormError
        return str(node.name), shape

    def is_variable(self, source: str) -> bool:
        """Whether a value is a variable, perhaps to be broadcast."""
        try:
            self.variable(source)
        except NoFormError:
            return False
        return True

    def shape(self, node: Any) -> list[int]:
        """Return the shape of a node's first output, -1 for sizes that are not known."""
        shapes = node.attr["_output_shapes"].list.shape
        if not shapes or shapes[0].unknown_rank:
            raise NoFormError
        return [int(size.size) for size in shapes[0].dim]


def _read_fused(reader: _Reader, node: Any) -> GraphForm:
    layout = node.attr["data_format"].s.decode()
    if node.attr["is_training"].b or layout not in _AXIS_OF_FORMAT:
        raise NoFormError
    parameters = {
        "moving_mean": reader.variable(node.input[3])[0],
        "moving_variance": reader.variable(node.input[4])[0],
    }
    for name, source, neutral in (("gamma", node.input[1], 1.0), ("beta", node.input[2], 0.0)):
        if reader.is_variable(source):
            parameters[name] = reader.variable(source)[0]
        elif not np.all(reader.constant(source) == neutral):
            raise NoFormError
    return GraphForm(
        output=node.name,
        x=node.input[0],
        axis=_AXIS_OF_FORMAT[layout],
        rank=len(reader.shape(node)),
        epsilon=float(node.attr["epsilon"].f),
        parameters=parameters,
        fused=True,
    )


def _read_decomposed(reader: _Reader, rsqrt: Any) -> GraphForm:
    total = reader.producer(rsqrt.input[0])
    if total.op != "AddV2":
        raise NoFormError
    variance, broadcast = reader.variable(total.input[0])
    epsilon = reader.constant(total.input[1])
    parameters = {"moving_variance": variance}
    factor = rsqrt
    if len(readers := reader.readers(rsqrt, "Mul")) == 1:
        factor = readers[0]
        parameters["gamma"] = reader.variable(_other(factor, rsqrt))[0]
    scaled, shift = _split(reader, reader.readers(factor, "Mul", 2), factor)
    [last] = reader.readers(scaled, "AddV2", 1)
    parameters.update(_read_shift(reader, _other(last, scaled), shift, factor))
    shape = reader.shape(last)
    return GraphForm(
        output=last.name,
        x=_other(scaled, factor),
        axis=_axis(shape, broadcast),
        rank=len(shape),
        epsilon=float(epsilon),
        parameters=parameters,
    )


def _split(reader: _Reader, products: list[Any], factor: Any) -> tuple[Any, Any]:
    """Return the product with x and the product with the mean."""
    with_mean = [
        product
        for product in products
        if reader.is_variable(other := _other(product, factor))
        or (
            reader.producer(other).op == "Neg"
            and reader.is_variable(reader.producer(other).input[0])
        )
    ]
    if len(with_mean) != 1:
        raise NoFormError
    scaled = next(product for product in products if product is not with_mean[0])
    return scaled, with_mean[0]


def _read_shift(reader: _Reader, source: str, product: Any, factor: Any) -> dict[str, str]:
    """Return mean and beta of `beta - mean * factor` or of `-mean * factor`."""
    shift, mean = reader.producer(source), _other(product, factor)
    if shift.op == "Sub" and reader.producer(shift.input[1]) is product:
        beta = reader.variable(shift.input[0])[0]
        return {"moving_mean": reader.variable(mean)[0], "beta": beta}
    negated = reader.producer(mean)
    if shift is product and negated.op == "Neg":
        return {"moving_mean": reader.variable(negated.input[0])[0]}
    raise NoFormError


def _other(node: Any, known: Any) -> str:
    """Return the operand that is not `known`."""
    names = [source.removesuffix(":0") for source in node.input if not source.startswith("^")]
    if len(names) != 2 or names.count(known.name) != 1:
        raise NoFormError
    return str(names[1 - names.index(known.name)])


def _axis(shape: list[int], broadcast: tuple[int, ...] | None) -> int:
    """Return the channel axis: the last, unless parameters are reshaped for another."""
    if broadcast is None:
        return len(shape) - 1
    if len(broadcast) != len(shape):
        raise NoFormError
    wide = [at for at, size in enumerate(broadcast) if size != 1]
    if not wide:
        wide = [at for at, size in enumerate(shape) if at and size == 1]
    if len(wide) != 1:
        raise NoFormError
    return wide[0]


_READERS: dict[str, Callable[[_Reader, Any], GraphForm]] = {
    "FusedBatchNormV3": _read_fused,
    "Rsqrt": _read_decomposed,
}
