"""Constant weights: reading them through what stands before them, and putting new ones in place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.files.scaled_tensor import ScaledTensor
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


def read_weight(
    value: ir.Value | None, model: ir.Model, *, quantized: bool = False
) -> ir.TensorProtocol:
    """Return a weight, which may be an initializer or computed of such.

    Args:
        value: What is read as a weight.
        model: The model.
        quantized: Whether one that is stored quantized is taken, which it is no more once it has
            been replaced.

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
    if not quantized and constants.is_dequantized(value, model):
        raise Refusal(f"weight '{value.name}' is quantized, and fused it would not be")
    tensor = constants.constant_tensor(value, model)
    if tensor is None:
        raise Refusal(f"weight '{value.name}' is computed at run time")
    if isinstance(tensor, ir.LazyTensor) and not isinstance(tensor, ScaledTensor):
        return ir.Tensor(tensor.numpy(), tensor.dtype)
    return tensor


def read_bias(value: ir.Value | None, model: ir.Model, shape: Sequence[int | None]) -> Float64:
    """Return the values of a bias that is added to `shape`, whose None stands for any size.

    Raises:
        Refusal: if it is not constant, or does not broadcast to `shape`.
    """
    values = read_weight(value, model, quantized=True).numpy().astype(np.float64)
    ends = zip(reversed(values.shape), reversed(shape), strict=False)
    if values.ndim > len(shape) or any(
        wanted is not None and size not in (1, wanted) for size, wanted in ends
    ):
        raise Refusal(f"its bias has shape {list(values.shape)}")
    return values


def require_groups(group: int, sizes: Sequence[int]) -> None:
    """Refuse groups that do not divide the channels.

    Raises:
        Refusal: if that is so, or the weights have too few axes to be those of a convolution.
    """
    if len(sizes) < 3:
        raise Refusal(f"its weights have {len(sizes)} axes")
    if group < 1 or sizes[0] % group:
        raise Refusal(f"its {sizes[0]} channels cannot be divided into {group} groups")


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


class WeightStore:
    """Puts new constants into a model.

    Args:
        model: Changed in place.
    """

    def __init__(self, model: ir.Model) -> None:
        self.names = graphs.Names(model)
        self._functions = {id(function.graph) for function in model.functions.values()}
        for function in model.functions.values():
            self.names.values.update(str(value.name) for value in function.inputs)
            for node in function.all_nodes():
                self.names.values.update(str(value.name) for value in node.outputs)

    def apply(self, edit: Edit) -> None:
        """Let a node read new values: in place where nothing else reads the old ones."""
        node = edit.node
        old = node.inputs[edit.index] if edit.index < len(node.inputs) else None
        if old is not None and old.const_value is not None:
            edit.tensor.doc_string = old.const_value.doc_string
            edit.tensor.metadata_props.update(old.const_value.metadata_props)
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
            value.doc_string = old.doc_string
            value.metadata_props.update(old.metadata_props)
            value.meta.update(old.meta)
            remove_unused(old)

    def constant(self, before: ir.Node, tensor: ir.TensorProtocol, wanted: str) -> ir.Value:
        """Return a constant that `before` can read: an initializer, or in a function a Constant."""
        graph = before.graph
        assert graph is not None
        name = tensor.name = self.names.value(wanted)
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
