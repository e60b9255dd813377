"""Losses that compare an output with labels: sums of terms, and what they are divided by."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.graph import graphs
from syncbn_convert.graph.tape import Tape

_DOUBLE, _FLOAT, _INT64 = ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.INT64
_SAMPLES_AND_CLASSES = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelling:
    """How labels count.

    Attributes:
        labels: Name of the labels.
        one_hot: Whether they are shares of the classes, of the output's shape.
        ignored: Class index of labels that do not count; None for none.
        class_weights: What the labels of each class count; None for 1.
        smoothing: Share of each label that is spread over all classes.
        class_axis: Axis of the classes; None where the output tells.
        label_shape: Shape of the labels in the data, as far as it is known.
    """

    labels: str
    one_hot: bool = False
    ignored: int | None = None
    class_weights: tuple[float, ...] | None = None
    smoothing: float = 0.0
    class_axis: int | None = None
    label_shape: tuple[int | None, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Terms:
    """What a loss is the mean of.

    Attributes:
        values: Terms, float32 or float64, the first axis that of the samples.
        divisor: What their sum is divided by, float64 [1], on this replica.
        label: The graph input of the labels.
        reason: What to tell the user.
    """

    values: ir.Value
    divisor: ir.Value
    label: ir.Value
    reason: str


@dataclasses.dataclass(frozen=True)
class Activated:
    """An output, and what goes into its final activation.

    Attributes:
        logits: That; the output itself where there is no activation.
        node: The activation; None where there is none.
        order: Order of axes in which the output has those of the logits; None where it is the same.
    """

    logits: ir.Value
    node: ir.Node | None
    order: tuple[int, ...] | None


def activated(output: ir.Value, *activations: str) -> Activated:
    """Look through a final activation, and what only moves axes or casts behind it."""
    value, order = output, None
    while (node := value.producer()) is not None and node.domain in graphs.STANDARD_DOMAINS:
        source = node.inputs[0] if node.inputs else None
        if source is None:
            break
        if node.op_type in activations:
            return Activated(source, node, order)
        if node.op_type == "Transpose":
            own = node.attributes.get("perm")
            if own is None:
                break
            moved = tuple(own.as_ints())
            order = moved if order is None else tuple(moved[at] for at in order)
        elif node.op_type not in ("Identity", "Cast"):
            break
        value = source
    return Activated(output, None, None)


def class_axis_of(output: ir.Value, how: Labelling) -> int:
    """Return the axis of an output that holds the classes.

    Raises:
        ConversionError: if nothing tells.
    """
    found = activated(output, "Softmax", "LogSoftmax")
    if how.class_axis is not None:
        return how.class_axis
    if found.node is not None:
        axis = found.node.attributes.get_int("axis", -1)
        if found.order is None:
            return axis
        return found.order.index(axis % len(found.order))
    rank = len(output.shape) if output.shape is not None else None
    if rank == _SAMPLES_AND_CLASSES:
        return -1
    left = _axes_left(output, how)
    if len(left) == 1:
        return left[0]
    raise ConversionError(
        f"output '{output.name}' has rank {rank} and neither a Softmax nor the shape of the labels "
        "says which of its axes holds the classes; name it with --class-axis, or end the model "
        "with a Softmax, which is looked through"
    )


def _axes_left(output: ir.Value, how: Labelling) -> list[int]:
    """Return the axes of an output without which it has the shape of the labels."""
    if output.shape is None or how.label_shape is None or how.one_hot:
        return []
    sizes = [size if isinstance(size, int) else None for size in output.shape]
    if len(sizes) != len(how.label_shape) + 1:
        return []
    return [
        axis
        for axis in range(1, len(sizes))
        if all(
            own is None or other is None or own == other
            for own, other in zip(
                [*sizes[1:axis], *sizes[axis + 1 :]], how.label_shape[1:], strict=True
            )
        )
    ]


def softmax_cross_entropy(
    tape: Tape, names: graphs.Names, output: ir.Value, how: Labelling
) -> Terms:
    """Write the cross entropy of softmax, by the formulas of `torch.nn.CrossEntropyLoss`."""
    found = activated(output, "Softmax", "LogSoftmax")
    axis = class_axis_of(output, how)
    sizes = None if output.shape is None else list(output.shape)
    logits, dtype = _at_least_float32(tape, found, output)
    log_p = tape.op("LogSoftmax", logits, axis=axis)
    weights = None
    if how.class_weights is not None:
        rank = None if sizes is None else len(sizes)
        weights = _class_weights(tape, how.class_weights, output, axis, rank, dtype)
    weighted = log_p if weights is None else tape.op("Mul", log_p, weights)
    if how.one_hot:
        label = _input(names, how.labels, dtype, sizes)
        shares, counted = label, None
    else:
        if sizes is not None:
            del sizes[axis]
        label = _input(names, how.labels, _INT64, sizes)
        place, counted = _counted(tape, label, how.ignored, dtype)
        depth = tape.op("Gather", tape.op("Shape", logits), tape.ints(axis))
        marks = tape.constant(np.array([0, 1]), _FLOAT)
        shares = tape.op("OneHot", place, depth, marks, axis=axis)
        if dtype != _FLOAT:
            shares = tape.op("Cast", shares, to=int(dtype))
    picked = _sum_over(tape, tape.op("Mul", weighted, shares), axis)
    if how.smoothing:
        mean = tape.op("ReduceMean", weighted, tape.ints(axis), keepdims=0)
        picked = tape.op(
            "Add",
            tape.op("Mul", picked, tape.constant(1.0 - how.smoothing, dtype)),
            tape.op("Mul", mean, tape.constant(how.smoothing, dtype)),
        )
    if counted is not None:
        picked = tape.op("Mul", picked, counted)
    if weights is None or how.one_hot:
        divisor = _size_of(tape, picked) if counted is None else _sum(tape, counted)
    else:
        each = _sum_over(tape, tape.op("Mul", shares, weights), axis)
        each = each if counted is None else tape.op("Mul", each, counted)
        divisor = _sum(tape, each)
    values = tape.op("Neg", picked)
    return Terms(values=values, divisor=divisor, label=label, reason=_looked_through(found.node))


def binary_cross_entropy(
    tape: Tape, names: graphs.Names, output: ir.Value, how: Labelling
) -> Terms:
    """Write the cross entropy of sigmoid; smoothed labels are those of Keras."""
    found = activated(output, "Sigmoid")
    logits, dtype = _at_least_float32(tape, found, output)
    label = _input(names, how.labels, dtype, None if output.shape is None else list(output.shape))
    shares: ir.Value = label
    if how.smoothing:
        shares = tape.op("Mul", label, tape.constant(1.0 - how.smoothing, dtype))
        shares = tape.op("Add", shares, tape.constant(0.5 * how.smoothing, dtype))
    values = tape.op("Sub", tape.op("Softplus", logits), tape.op("Mul", logits, shares))
    divisor = _size_of(tape, label)
    return Terms(values=values, divisor=divisor, label=label, reason=_looked_through(found.node))


def mean_squared_error(tape: Tape, names: graphs.Names, output: ir.Value, how: Labelling) -> Terms:
    """Write the squares of the differences."""
    value, dtype = _at_least_float32(tape, Activated(output, None, None), output)
    label = _input(names, how.labels, dtype, None if output.shape is None else list(output.shape))
    difference = tape.op("Sub", value, label)
    values = tape.op("Mul", difference, difference)
    divisor = _size_of(tape, label)
    return Terms(values=values, divisor=divisor, label=label, reason="of all elements")


def weighted_by_sample(
    tape: Tape, names: graphs.Names, terms: ir.Value, name: str
) -> tuple[ir.Value, ir.Value]:
    """Return terms times the weight of their sample, and the graph input of weights, [N]."""
    weight = _input(names, name, _FLOAT, [None])
    rows = tape.op("Flatten", terms, axis=1)
    column = tape.op("Unsqueeze", tape.op("CastLike", weight, rows), tape.ints(1))
    return tape.op("Mul", rows, column), weight


def as_number(tape: Tape, value: ir.Value) -> ir.Value:
    """Return a scalar as float64 [1]."""
    return tape.op("Reshape", tape.op("Cast", value, to=int(_DOUBLE)), tape.ints(1))


def sum_of(tape: Tape, terms: ir.Value) -> ir.Value:
    """Return the sum of all elements, float64 [1]."""
    return _sum(tape, terms)


def _counted(
    tape: Tape, label: ir.Value, ignored: int | None, dtype: ir.DataType
) -> tuple[ir.Value, ir.Value | None]:
    """Return class indices of which none is the ignored one, and 1 where a label counts."""
    if ignored is None:
        return label, None
    index = tape.constant(np.array(ignored), _INT64)
    same = tape.op("Equal", label, index)
    place = tape.op("Where", same, tape.constant(np.array(0), _INT64), label)
    return place, tape.op("Cast", tape.op("Not", same), to=int(dtype))


def _class_weights(
    tape: Tape,
    weights: Sequence[float],
    output: ir.Value,
    axis: int,
    rank: int | None,
    dtype: ir.DataType,
) -> ir.Value:
    if rank is None:
        raise ConversionError(
            f"output '{output.name}': its rank is not known, and class weights need it; give "
            "--input-shape"
        )
    assert output.shape is not None
    classes = output.shape[axis]
    if isinstance(classes, int) and classes != len(weights):
        raise ConversionError(
            f"--class-weights has {len(weights)} numbers, and output '{output.name}' {classes} "
            "classes; give one for each"
        )
    shape = [1] * rank
    shape[axis] = len(weights)
    return tape.constant(np.array(weights).reshape(shape), dtype)


def _sum_over(tape: Tape, value: ir.Value, axis: int) -> ir.Value:
    return tape.op("ReduceSum", value, tape.ints(axis), keepdims=0)


def _looked_through(activation: ir.Node | None) -> str:
    if activation is None:
        return "the output taken as logits"
    return f"{activation.op_type} '{graphs.label(activation)}' looked through"


def _input(names: graphs.Names, name: str, dtype: ir.DataType, sizes: list[Any] | None) -> ir.Value:
    if names.value(name) != name:
        raise ConversionError(
            f"the model has a value named '{name}' of its own; name the labels otherwise"
        )
    shape = None
    if sizes is not None:  # some exporters write -1 for any size
        shape = ir.Shape([None if isinstance(n, int) and n < 0 else n for n in sizes])
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=shape)


def _at_least_float32(
    tape: Tape, found: Activated, output: ir.Value
) -> tuple[ir.Value, ir.DataType]:
    """Return logits with the axes of the output, in float32 or float64."""
    value = found.logits
    if found.order is not None:
        value = tape.op("Transpose", value, perm=found.order)
    dtype = found.logits.dtype or output.dtype
    if dtype in (_FLOAT, _DOUBLE):
        return value, dtype
    return tape.op("Cast", value, to=int(_FLOAT)), _FLOAT


def _sum(tape: Tape, terms: ir.Value) -> ir.Value:
    wide = tape.op("Cast", terms, to=int(_DOUBLE))
    return tape.op("ReduceSum", tape.op("Reshape", wide, tape.ints(-1)), tape.ints(0))


def _size_of(tape: Tape, value: ir.Value) -> ir.Value:
    """Return the number of elements, float64 [1]."""
    return tape.op(
        "Cast", tape.op("Reshape", tape.op("Size", value), tape.ints(1)), to=int(_DOUBLE)
    )
