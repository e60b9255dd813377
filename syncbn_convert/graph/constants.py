"""Values of a graph that are known without running it."""

from __future__ import annotations

import dataclasses
import math
import operator
import re
import weakref
from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
import onnx_ir as ir

from syncbn_convert.graph import constant_evaluation, graphs

_MOST_STEPS = 16
"""A normalization in elementwise operators takes half as many; more could cost without end."""
_MOST_ELEMENTS = 1 << 27
"""Of all results that are computed for one model; a small file may describe any number."""

FIRST_IR_WITH_OVERRIDABLE_INITIALIZERS = 4

NAME = "constant"
"""What frontends call an initializer that is no variable of the framework; they number the rest."""
_NAMED = re.compile(rf"{NAME}(_\d+)?")


def is_named_constant(value: ir.Value) -> bool:
    """Whether an initializer has the name that frontends give to what is no variable."""
    return _NAMED.fullmatch(str(value.name)) is not None


def is_overridable(value: ir.Value, ir_version: int | None) -> bool:
    """Whether a caller may feed another value than the initializer.

    Before IR version 4 every initializer had to be listed as an input, so the listing says nothing.
    """
    return (
        value.is_graph_input()
        and value.is_initializer()
        and (ir_version or 0) >= FIRST_IR_WITH_OVERRIDABLE_INITIALIZERS
    )


def constant_tensor(
    value: ir.Value, model: ir.Model, steps: int = _MOST_STEPS
) -> ir.TensorProtocol | None:
    """Return the tensor that `value` always holds, or None where it depends on what is fed.

    Initializers are looked up, and so are sizes that the model states, where Shape or Size asks for
    them. Results of operators on constants, as exporters write parameters and weights with, are
    computed by ONNX's reference implementation, in the opset of their scope, if no more than
    `steps` of them follow one another; large ones when they are read, and then only as far as
    `evaluation` has it.
    """
    return _Lookup(model).tensor(value, steps)


@dataclasses.dataclass(frozen=True)
class _Remembered:
    """What a node made of its operands, which holds as long as all are the same objects."""

    node: ir.Node
    attributes: list[ir.Attr]
    operands: list[ir.TensorProtocol]
    result: ir.TensorProtocol | None

    def holds(self, node: ir.Node, operands: list[ir.TensorProtocol]) -> bool:
        attributes = list(node.attributes.values())
        return (
            self.node is node
            and _are_same(self.attributes, attributes)
            and _are_same(self.operands, operands)
        )


def _are_same(some: Sequence[object], others: Sequence[object]) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))


class _Memory:
    """Results of the nodes of one model, and how many elements more may be computed for it."""

    def __init__(self) -> None:
        self._results: weakref.WeakKeyDictionary[ir.Value, _Remembered] = (
            weakref.WeakKeyDictionary()
        )
        self._left = _MOST_ELEMENTS

    def evaluated(
        self, node: ir.Node, value: ir.Value, operands: dict[str, ir.TensorProtocol], opset: int
    ) -> ir.TensorProtocol | None:
        """Return what `constant_evaluation.evaluate` does, once for the same operands."""
        known = self._results.get(value)
        tensors = list(operands.values())
        if known is not None and known.holds(node, tensors):
            return known.result
        result = constant_evaluation.evaluate(node, value, operands, opset)
        if result is not None:
            self._left -= result.size
            if self._left < 0:
                result = None
        attributes = list(node.attributes.values())
        self._results[value] = _Remembered(node, attributes, tensors, result)
        return result


_memories: weakref.WeakKeyDictionary[ir.Model, _Memory] = weakref.WeakKeyDictionary()


class _Lookup:
    """One search for a constant, which looks at a value once for each number of steps left."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._found: dict[tuple[ir.Value, int], ir.TensorProtocol | None] = {}

    def tensor(self, value: ir.Value, steps: int) -> ir.TensorProtocol | None:
        key = (value, steps)
        if key not in self._found:
            self._found[key] = self._tensor(value, steps)
        return self._found[key]

    def _tensor(self, value: ir.Value, steps: int) -> ir.TensorProtocol | None:
        if value.is_initializer():
            return None if is_overridable(value, self._model.ir_version) else value.const_value
        node = value.producer()
        if node is None or not steps:
            return None
        standard = node.domain in graphs.STANDARD_DOMAINS
        if standard and node.op_type in constant_evaluation.OF_SHAPES:
            tensor = self._of_shape(node, steps)
            return None if tensor is None or (tensor.numpy() < 0).any() else tensor
        if not constant_evaluation.is_known(node):
            return None
        if any(attribute.is_ref() for attribute in node.attributes.values()):
            return None
        if node.op_type == "Constant" and "value" in node.attributes:
            return node.attributes["value"].as_tensor()
        operands = self._operands(node, steps)
        if operands is None:
            return None
        opset = graphs.opset_version_of(node, self._model)
        memory = _memories.setdefault(self._model, _Memory())
        result = memory.evaluated(node, value, operands, opset)
        return None if result is None or _holds_unknown_sizes(node, result) else result

    def _operands(self, node: ir.Node, steps: int) -> dict[str, ir.TensorProtocol] | None:
        """Return the constant inputs of a node by name; of one that only gives a type, nothing."""
        found: dict[str, ir.TensorProtocol] = {}
        for index, operand in enumerate(node.inputs):
            if operand is None or str(operand.name) in found:
                continue
            if graphs.reads_type_only(node, index):
                if operand.dtype is None:
                    return None
                continue
            maker = operand.producer()
            if index == 0 and node.op_type in _SELECTORS and _is_shape(maker):
                tensor = self._of_shape(maker, steps - 1)
            else:
                tensor = self.tensor(operand, steps - 1)
            if tensor is None:
                return None
            found[str(operand.name)] = tensor
        return found

    def _of_shape(self, node: ir.Node, steps: int) -> ir.TensorProtocol | None:
        """Return what Shape or Size makes, with -1 where a size is not known."""
        operand = node.inputs[0]
        shape = operand.shape if operand is not None else None
        if operand is not None and (shape is None or not shape.is_static()):
            tensor = self.tensor(operand, steps - 1)
            shape = shape if tensor is None else ir.Shape(tensor.shape.numpy())
        if shape is None:
            return None
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        if node.op_type == "Size":
            return ir.tensor(np.array(-1 if -1 in sizes else math.prod(sizes), np.int64))
        if any(attribute.is_ref() for attribute in node.attributes.values()):
            return None
        start, end = (node.attributes.get_int(name, None) for name in ("start", "end"))
        return ir.tensor(np.array(sizes[start:end], np.int64))


def is_dequantized(value: ir.Value, model: ir.Model) -> bool:
    """Whether a value is what constant operators make of a constant that is stored quantized."""
    pending, steps = [value], _MOST_STEPS
    while pending and steps:
        node, steps = pending.pop().producer(), steps - 1
        if node is None or not constant_evaluation.is_known(node):
            continue
        operand = node.inputs[0] if node.inputs else None
        if node.op_type == "DequantizeLinear" and operand is not None:
            return constant_tensor(operand, model) is not None
        pending += [operand for operand in node.inputs if operand is not None]
    return False


def replace_by_initializer(value: ir.Value, tensor: ir.TensorProtocol, graph: ir.Graph) -> None:
    """Let an initializer hold what a node makes, under its name; what made it and only it goes."""
    name, array = str(value.name), tensor.numpy()
    value.name = f"{name}__computed"
    initializer = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        doc_string=value.doc_string,
        metadata_props=dict(value.metadata_props),
        const_value=ir.tensor(array, name=name, dtype=tensor.dtype),
    )
    graph.register_initializer(initializer)
    value.replace_all_uses_with(initializer, replace_graph_outputs=True)
    graphs.remove_dead_producers([value])


_SELECTORS = ("Gather", "Slice", "Split")
"""Their results can be known where not all sizes that they select from are."""


def _is_shape(node: ir.Node | None) -> TypeGuard[ir.Node]:
    return node is not None and node.op_type == "Shape" and node.domain in graphs.STANDARD_DOMAINS


def _holds_unknown_sizes(node: ir.Node, result: ir.TensorProtocol) -> bool:
    if node.op_type not in _SELECTORS or node.inputs[0] is None:
        return False
    return _is_shape(node.inputs[0].producer()) and bool((result.numpy() < 0).any())
