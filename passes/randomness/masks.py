"""Stochastic depth: a random mask of zeros and ones, divided by the share of its ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from syncbn_convert.graph import constants, graphs
from syncbn_convert.graph.dtypes import epsilon, is_floating
from syncbn_convert.passes.randomness.mask_shapes import MaskShapes

_UNITS = 4.0
"""Rounding errors of survival rate, scale and their product."""
_BELOW = ("Less", "LessOrEqual")
_ABOVE = ("Greater", "GreaterOrEqual")
_NOT_A_MASK = "it is not a mask divided by its share of ones"


@dataclasses.dataclass(frozen=True)
class _Mask:
    """A value that is `scale` with probability `survival`, else 0."""

    value: ir.Value
    survival: float
    scale: float = 1.0

    def scaled(self, value: ir.Value, factor: float = 1.0) -> _Mask:
        return dataclasses.replace(self, value=value, scale=self.scale * factor)

    @property
    def mean(self) -> float:
        return self.survival * self.scale


class Finder:
    """Finds the masks of a model and takes them away.

    Args:
        model: The model, whose types and shapes are inferred where they are open.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._names = graphs.Names(model)
        self._shapes = MaskShapes(model)

    def switch_off(self, draw: ir.Node, function: ir.Function | None) -> str:
        """Let the product with the mask that a node draws return the other factor.

        Returns:
            Why nothing was done; empty where it was.
        """
        mask = None if function is not None else self._drawn(draw)
        product = None if mask is None else self._product(mask)
        if product is None:
            return _NOT_A_MASK
        node, kept, mask = product
        before = kept.producer()
        after = _only_reader(node.outputs[0])
        if self._is_one(mask.mean):
            pass
        elif before is not None and self._is_one(mask.mean * self._factor(before)):
            kept = self._scaled_input(before)
        elif after is not None and self._is_one(mask.mean * self._factor(after)):
            self._make_identity(after, node.outputs[0])
        else:
            return _NOT_A_MASK
        return self._replace(node, kept, draw)

    def _drawn(self, draw: ir.Node) -> _Mask | None:
        """Return the zeros and ones that a node's random numbers become."""
        value = draw.outputs[0]
        if draw.op_type == "Bernoulli":
            share = self._filled(draw.inputs[0])
            return None if share is None else _Mask(value, share)
        low, high = (draw.attributes.get_float(n, d) for n, d in (("low", 0.0), ("high", 1.0)))
        reader = _only_reader(value)
        if "Uniform" not in draw.op_type or (low, high) != (0.0, 1.0) or reader is None:
            return None
        other = self._filled(_other(reader, value))
        if other is None or not 0.0 < other <= 1.0:
            return None
        if reader.op_type == "Add":
            floor = _only_reader(reader.outputs[0])
            whole = floor is not None and floor.op_type == "Floor"
            return _Mask(floor.outputs[0], other) if floor is not None and whole else None
        first = reader.inputs[0] is value
        if reader.op_type not in (*_BELOW, *_ABOVE):
            return None
        below = (reader.op_type in _BELOW) == first
        return _Mask(reader.outputs[0], other if below else 1.0 - other)

    def _product(self, mask: _Mask) -> tuple[ir.Node, ir.Value, _Mask] | None:
        """Follow a mask to what it is multiplied onto; return the node, that value, the mask."""
        while (reader := _only_reader(mask.value)) is not None:
            output = reader.outputs[0]
            other = _other(reader, mask.value)
            factor = self._filled(other)
            if reader.op_type in ("Cast", "Identity"):
                mask = mask.scaled(output)
            elif reader.op_type == "Not":
                mask = _Mask(output, 1.0 - mask.survival)
            elif reader.op_type == "Mul" and factor is not None:
                mask = mask.scaled(output, factor)
            elif reader.op_type == "Div" and factor and reader.inputs[0] is mask.value:
                mask = mask.scaled(output, 1.0 / factor)
            elif reader.op_type == "Mul" and other is not None:
                return reader, other, mask
            else:
                return self._choice(reader, mask)
        return None

    def _choice(self, node: ir.Node, mask: _Mask) -> tuple[ir.Node, ir.Value, _Mask] | None:
        """Return a Where between a value and zero as the product that it is."""
        if node.op_type != "Where" or node.inputs[0] is not mask.value:
            return None
        for index, survival in ((1, mask.survival), (2, 1.0 - mask.survival)):
            kept, dropped = node.inputs[index], node.inputs[3 - index]
            if kept is not None and self._filled(dropped) == 0.0 and self._filled(kept) is None:
                return node, kept, _Mask(mask.value, survival)
        return None

    def _replace(self, node: ir.Node, kept: ir.Value, draw: ir.Node) -> str:
        source = draw.inputs[0] if draw.inputs else None
        shape = self._shapes.constant_of(draw) if source is None else None
        if self._shapes.within(source, shape, kept):
            self._make_identity(node, kept)
            return ""
        dtype = self._shapes.dtype_of(kept) or self._shapes.dtype_of(node.outputs[0])
        if dtype is None:
            return "the type of what it is multiplied onto is not known"
        ones = self._ones(node, dtype, source, shape)
        given = list(node.inputs)
        node.op_type = "Mul"
        node.resize_inputs(2)
        node.replace_input_with(0, kept)
        node.replace_input_with(1, ones)
        graphs.remove_dead_producers([value for value in given if value is not kept])
        return ""

    def _ones(
        self, node: ir.Node, dtype: ir.DataType, source: ir.Value | None, shape: list[int] | None
    ) -> ir.Value:
        tape = ir.tape.Tape()
        one = ir.tensor(np.ones((), dtype.numpy()), dtype=dtype)
        if source is None:
            sizes = tape.op("Constant", [], {"value": ir.tensor(shape or [], ir.DataType.INT64)})
        else:
            sizes = tape.op("Shape", [source])
        ones = tape.op("Expand", [tape.op("Constant", [], {"value": one}), sizes])
        for made in tape.nodes:
            made.name = self._names.node(f"{graphs.label(node)}/ones/{made.op_type}")
            made.outputs[0].name = self._names.value(made.name)
        assert node.graph is not None
        node.graph.insert_before(node, list(tape.nodes))
        return ones

    def _make_identity(self, node: ir.Node, kept: ir.Value) -> None:
        given = [value for value in node.inputs if value is not kept]
        node.op_type = "Identity"
        node.resize_inputs(1)
        node.replace_input_with(0, kept)
        graphs.remove_dead_producers(given)

    def _factor(self, node: ir.Node) -> float:
        """Return what a Mul or Div by a constant multiplies by; 0 for other nodes."""
        factors = [self._filled(value) for value in node.inputs]
        if node.op_type == "Div" and len(factors) == 2 and factors[1] and factors[0] is None:
            return 1.0 / factors[1]
        if node.op_type == "Mul" and factors.count(None) == 1:
            return next(factor for factor in factors if factor is not None)
        return 0.0

    def _scaled_input(self, node: ir.Node) -> ir.Value:
        value = next(value for value in node.inputs if self._filled(value) is None)
        assert value is not None
        return value

    @staticmethod
    def _is_one(mean: float) -> bool:
        return abs(mean - 1.0) <= _UNITS * epsilon(np.dtype(np.float32))

    def _filled(self, value: ir.Value | None) -> float | None:
        """Return the number that a constant of floats holds everywhere, or None."""
        if value is None:
            return None
        node = value.producer()
        if node is not None and node.op_type in ("Expand", "Identity", "CastLike"):
            return self._filled(node.inputs[0])
        if node is not None and node.op_type == "ConstantOfShape":
            given = node.attributes.get("value")
            return 0.0 if given is None else float(given.as_tensor().numpy().reshape(-1)[0])
        tensor = constants.constant_tensor(value, self._model)
        if tensor is None or not tensor.size or not is_floating(tensor.dtype.numpy()):
            return None
        values = tensor.numpy().astype(np.float64).reshape(-1)
        return float(values[0]) if (values == values[0]).all() else None


def _only_reader(value: ir.Value) -> ir.Node | None:
    """Return the standard node that alone reads a value which the graph does not return."""
    usages = list(value.uses())
    if len(usages) != 1 or value.is_graph_output():
        return None
    node = usages[0].node
    return node if node.domain in graphs.STANDARD_DOMAINS and len(node.outputs) == 1 else None


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    if len(node.inputs) != 2:
        return None
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]
