"""What gradient rules write nodes with."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.graph import constants, graphs
from syncbn_convert.graph.tape import SharingTape

MIN_OPSET = 18
"""Rules see forward nodes of this opset or newer, and write what is the same from it on."""


class GradientTape(SharingTape):
    """Collects the nodes of a backward graph; nothing is added to the model before the end.

    Args:
        model: The forward graph; every value that gradients flow through has dtype and rank.
        wanted: Ids of the values whose gradients are wanted: those on a path from a trainable
            parameter to the loss.
    """

    def __init__(self, model: ir.Model, wanted: set[int]) -> None:
        super().__init__(lambda node: self._names.after_operator(node, self._scope))
        self._model = model
        self._wanted = wanted
        self._names = graphs.Names(model)
        self._scope = "gradient"
        self._resized: list[tuple[ir.Node, int]] = []
        self._published: set[str] = set()

    def undo(self) -> None:
        """Take back what rules changed in the forward graph, and let go of its values."""
        for node in self.nodes:
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
        self.nodes.clear()
        for node, count in reversed(self._resized):
            node.resize_outputs(count)
        self._resized.clear()

    def forward_output(self, node: ir.Node, index: int, dtype: ir.DataType) -> ir.Value:
        """Return output `index` of a forward node, which is made if the node has none."""
        if len(node.outputs) <= index:
            self._resized.append((node, len(node.outputs)))
            node.resize_outputs(index + 1)
            for unused in node.outputs:
                unused.name = unused.name or ""
        output = node.outputs[index]
        if not output.name:
            output.name = self._names.value(f"{graphs.label(node)}/output{index}")
            output.type = ir.TensorType(dtype)
        return output

    def publish(self, gradient: ir.Value, name: str) -> ir.Value:
        """Return `gradient` under a name that nobody else may have, as a value of its own.

        Raises:
            ConversionError: if the model has the name already.
        """
        if name in self._names.values:
            raise ConversionError(
                f"the model has a value named '{name}' of its own, and that is the name of a "
                "gradient; rename it"
            )
        node = gradient.producer()
        own = node is not None and node.graph is None and node.op_type != "Constant"
        taken = gradient.uses() or gradient.name in self._published
        if node is None or not own or taken or len(node.outputs) > 1:
            self._scope = f"gradient/{name}"
            gradient = self.op("Identity", gradient)
        gradient.name = self._names.value(name)
        self._published.add(name)
        return gradient

    def enter(self, node: ir.Node) -> None:
        """Name what is written from here on after `node`."""
        self._scope = f"gradient/{graphs.label(node)}"

    def wants(self, node: ir.Node, index: int) -> bool:
        """Whether anybody wants the gradient of the node's input `index`."""
        operand = node.inputs[index] if index < len(node.inputs) else None
        return operand is not None and id(operand) in self._wanted

    def like(self, number: float, value: ir.Value) -> ir.Value:
        """Return a scalar constant of the dtype of a forward value."""
        return self.constant(number, self.dtype(value))

    def shape_of(self, value: ir.Value) -> ir.Value:
        """Return a forward value's shape, int64 [rank]: a constant where it is known."""
        sizes = self.static_shape(value)
        return self.op("Shape", value) if sizes is None else self.ints(*sizes)

    def known(self, value: ir.Value | None) -> np.ndarray[Any, Any] | None:
        """Return the array that a forward value always holds, or None where that is not known."""
        tensor = None if value is None else constants.constant_tensor(value, self._model)
        return None if tensor is None else tensor.numpy()

    def zeros_like(self, value: ir.Value) -> ir.Value:
        """Return zeros of a forward value's shape and element type."""
        return self.zeros(self.shape_of(value), self.dtype(value))

    def zeros(self, shape: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return zeros of a shape that may be computed."""
        zero = ir.tensor(np.zeros(1, dtype.numpy()), dtype=dtype)
        return self.op("ConstantOfShape", shape, value=zero)

    def static_shape(self, value: ir.Value) -> list[int] | None:
        """Return a forward value's sizes, or None where one of them is not known."""
        if value.shape is None:
            return None
        sizes = [size for size in value.shape if isinstance(size, int)]
        return sizes if len(sizes) == len(value.shape) else None

    def rank(self, value: ir.Value) -> int:
        """Return a forward value's rank.

        Raises:
            ConversionError: if it is not known.
        """
        if value.shape is None:
            raise ConversionError(
                f"value '{value.name}': its rank is not known, and its gradient needs it; give "
                "the model's inputs shapes and export it again"
            )
        return len(value.shape)

    def dtype(self, value: ir.Value) -> ir.DataType:
        """Return a forward value's element type.

        Raises:
            ConversionError: if it is not known.
        """
        if value.dtype is None:
            raise ConversionError(
                f"value '{value.name}': its element type is not known, and its gradient needs it; "
                "run shape inference on the model first"
            )
        return value.dtype

    def sum_to(self, gradient: ir.Value, source: ir.Value, target: ir.Value) -> ir.Value:
        """Undo broadcasting: sum a gradient over the axes that broadcasting made.

        Args:
            gradient: A gradient of the shape of `source`.
            source: A forward value that `target` was broadcast to.
            target: The forward value that the gradient is for.
        """
        lost = self.rank(source) - self.rank(target)
        if lost:
            gradient = self.op("ReduceSum", gradient, self.ints(*range(lost)), keepdims=0)
        assert source.shape is not None
        assert target.shape is not None
        pairs = list(zip(source.shape[lost:], target.shape, strict=True))
        known = [axis for axis, (wide, own) in enumerate(pairs) if own == 1 and wide != 1]
        if known:
            gradient = self.op("ReduceSum", gradient, self.ints(*known), keepdims=1)
        if all(_surely_equal(wide, own) for wide, own in pairs if own != 1):
            return gradient
        return self._sum_open_axes(gradient, target)

    def _sum_open_axes(self, gradient: ir.Value, target: ir.Value) -> ir.Value:
        """Sum over axes that turn out at run time to have been of size one."""
        own, wide = self.op("Shape", target), self.op("Shape", gradient)
        differs = self.op("Not", self.op("Equal", own, wide))
        axes = self.op("Squeeze", self.op("NonZero", differs), self.ints(0))
        return self.op("ReduceSum", gradient, axes, keepdims=1, noop_with_empty_axes=1)

    def refuse(self, node: ir.Node, cause: str, cure: str) -> NoReturn:
        """Raise the error of a node that cannot be differentiated."""
        raise ConversionError(
            f"node '{graphs.label(node)}' ({node.op_type}) has no gradient: {cause}; {cure}"
        )


def _surely_equal(wide: int | ir.SymbolicDim, own: int | ir.SymbolicDim) -> bool:
    """Whether an axis was not broadcast; `own` is not known to be 1."""
    if isinstance(own, int):
        return True
    return isinstance(wide, ir.SymbolicDim) and own.value is not None and own.value == wide.value
