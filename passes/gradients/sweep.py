"""One backward sweep: which values gradients are wanted of, and what the rules make of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.graph import graphs
from syncbn_convert.passes.gradients.gradient_tape import GradientTape
from syncbn_convert.passes.gradients.registry import rule_for

FLOATS = {
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
}


@dataclasses.dataclass(frozen=True)
class Path:
    """What lies between parameters and a loss.

    Attributes:
        nodes: In graph order.
        values: Ids of the values, parameters and loss included.
    """

    nodes: list[ir.Node]
    values: set[int]


def find_path(model: ir.Model, parameters: Collection[ir.Value], loss: ir.Value) -> Path:
    """Find the nodes and values that depend on a parameter and that the loss depends on."""
    dependent = {id(value) for value in parameters}
    touched: list[tuple[ir.Node, list[ir.Value]]] = []
    for node in model.graph:
        if any(id(value) in dependent for value in _operands(node)):
            outputs = [output for output in node.outputs if output.dtype in FLOATS]
            dependent.update(map(id, outputs))
            touched.append((node, outputs))
    wanted = {id(loss)} & dependent
    nodes: list[ir.Node] = []
    for node, outputs in reversed(touched):
        if any(id(output) in wanted for output in outputs):
            nodes.append(node)
            wanted.update(id(value) for value in _operands(node) if id(value) in dependent)
    return Path(nodes[::-1], wanted)


def check_rules(path: Path) -> None:
    """Refuse a path on which a node has no rule.

    Raises:
        ConversionError: naming the node and its operator.
    """
    for node in path.nodes:
        if rule_for(node) is None:
            operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            raise ConversionError(
                f"node '{graphs.label(node)}' is on the way from a trainable parameter to the "
                f"loss, and there is no gradient rule for {operator}; freeze the parameters "
                "before it, or register a rule with syncbn_convert.passes.gradients.gradient"
            )


def sweep(tape: GradientTape, path: Path, loss: ir.Value) -> dict[int, ir.Value]:
    """Write the backward graph; return the gradients by id of what no node of the path makes."""
    gradients = {id(loss): _ones_like(tape, loss)}
    for node in reversed(path.nodes):
        flowing = [gradients.pop(id(output), None) for output in node.outputs]
        if all(gradient is None for gradient in flowing):
            continue
        rule = rule_for(node)
        assert rule is not None
        tape.enter(node)
        for operand, gradient in zip(node.inputs, rule(tape, node, flowing), strict=False):
            if operand is not None and gradient is not None and id(operand) in path.values:
                other = gradients.get(id(operand))
                gradients[id(operand)] = (
                    gradient if other is None else tape.op("Add", other, gradient)
                )
    return gradients


def _operands(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node reads, in its bodies too."""
    yield from (value for value in node.inputs if value is not None)
    for _, body in graphs.bodies(node):
        for inner in body:
            yield from _operands(inner)


def _ones_like(tape: GradientTape, loss: ir.Value) -> ir.Value:
    sizes = tape.static_shape(loss)
    if sizes is None or any(size != 1 for size in sizes):
        raise ConversionError(
            f"the loss '{loss.name}' has shape {loss.shape}, and only one number can be "
            "differentiated; reduce it to a scalar"
        )
    return tape.constant(np.ones(sizes), tape.dtype(loss))
