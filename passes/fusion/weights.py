"""Constant weights: reading them through what stands before them, and putting new ones in place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.graph import constants, graphs, weighted
from syncbn_convert.passes.fusion.affine import Float64, Refusal

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Edit:
    """A new weight for one input of a node.

    Attributes:
        node: The node.
        index: Which input.
        tensor: What it reads from now on, in the element type of the model.
    """

    node: ir.Node
    index: int
    tensor: ir.TensorProtocol


def bias_edit(node: ir.Node, tensor: ir.TensorProtocol) -> Edit:
    """Return a new bias for a node that has or can have one."""
    index = weighted.OPERATORS[node.op_type].bias
    assert index is not None
    return Edit(node, index, tensor)


def read_weight(value: ir.Value | None, model: ir.Model) -> ir.TensorProtocol:
    """Return a weight, through Identity, Cast and Transpose.

    Raises:
        Refusal: if it is not constant.
    """
    if value is None:
        raise Refusal("a weight is missing")
    if constants.is_overridable(value, model.ir_version):
        raise Refusal(f"weight '{value.name}' is an overridable input")
    if value.is_initializer():
        if value.const_value is None:
            raise Refusal(f"weight '{value.name}' has no values")
        return value.const_value
    node = value.producer()
    if node is not None and node.domain in graphs.STANDARD_DOMAINS and node.op_type in _READERS:
        return ir.tensor(_READERS[node.op_type](node, model))
    tensor = constants.constant_tensor(value, model)
    if tensor is None:
        raise Refusal(f"weight '{value.name}' is computed at run time")
    return tensor


def read_values(value: ir.Value | None, model: ir.Model) -> Float64:
    """Return the values of a weight; raises what `read_weight` raises."""
    return read_weight(value, model).numpy().astype(np.float64)


def rounded(values: Float64, dtype: ir.DataType) -> ir.TensorProtocol:
    """Round a fused bias once to the type of the model.

    Raises:
        Refusal: if it overflows.
    """
    with np.errstate(all="ignore"):
        result = values.astype(dtype.numpy())
    if not np.isfinite(result.astype(np.float64)).all():
        raise Refusal(f"the fused bias overflows {dtype.numpy()}")
    return ir.Tensor(result, dtype)


def _operand(node: ir.Node, model: ir.Model) -> Array:
    return read_weight(node.inputs[0], model).numpy()


def _cast(node: ir.Node, model: ir.Model) -> Array:
    target = ir.DataType(node.attributes["to"].as_int())
    return _operand(node, model).astype(target.numpy())


def _transposed(node: ir.Node, model: ir.Model) -> Array:
    return np.transpose(_operand(node, model), node.attributes.get_ints("perm", ()) or None)


def _filled(node: ir.Node, model: ir.Model) -> Array:
    shape = _operand(node, model)
    if "value" not in node.attributes:
        return np.zeros(shape, np.float32)
    fill = node.attributes["value"].as_tensor().numpy()
    return np.full(shape, fill[0], fill.dtype)


_READERS: dict[str, Callable[[ir.Node, ir.Model], Array]] = {
    "Identity": _operand,
    "Cast": _cast,
    "Transpose": _transposed,
    "ConstantOfShape": _filled,
}


class WeightStore:
    """Puts new constants into a model.

    Args:
        model: Changed in place.
    """

    def __init__(self, model: ir.Model) -> None:
        self.taken = graphs.used_names(model)
        self._functions = {id(function.graph) for function in model.functions.values()}

    def apply(self, edit: Edit) -> None:
        """Let a node read new values: in place where nothing else reads the old ones."""
        node = edit.node
        old = node.inputs[edit.index] if edit.index < len(node.inputs) else None
        if old is not None and _is_own(old):
            edit.tensor.name = old.name
            old.const_value = edit.tensor
            old.type = ir.TensorType(edit.tensor.dtype)
            old.shape = ir.Shape(edit.tensor.shape.numpy())
            return
        wanted = f"{graphs.label(node)}/bias" if old is None else f"{old.name}/fused"
        value = self.constant(node, edit.tensor, wanted)
        if edit.index >= len(node.inputs):
            node.resize_inputs(edit.index + 1)
        node.replace_input_with(edit.index, value)
        if old is not None:
            remove_unused(old)

    def constant(self, before: ir.Node, tensor: ir.TensorProtocol, wanted: str) -> ir.Value:
        """Return a constant that `before` can read: an initializer, or in a function a Constant."""
        graph = before.graph
        assert graph is not None
        name = tensor.name = graphs.unique_name(wanted, self.taken)
        if id(graph) in self._functions:
            constant = ir.node("Constant", [], {"value": tensor})
            constant.outputs[0].name = name
            graph.insert_before(before, constant)
            return constant.outputs[0]
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        graph.register_initializer(value)
        return value


def remove_unused(value: ir.Value) -> None:
    """Remove a constant that nothing reads any more, and what made it."""
    pending = [value]
    while pending:
        value = pending.pop()
        node = value.producer()
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        if value.is_initializer():
            if value.graph is not None:
                del value.graph.initializers[str(value.name)]
        elif node is not None and node.graph is not None:
            if any(output.uses() or output.is_graph_output() for output in node.outputs):
                continue
            pending += [operand for operand in node.inputs if operand is not None]
            node.graph.remove(node, safe=True)


def _is_own(value: ir.Value) -> bool:
    return (
        value.is_initializer()
        and not value.is_graph_input()
        and not value.is_graph_output()
        and len(value.uses()) == 1
    )
