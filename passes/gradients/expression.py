"""Formulas of gradient rules, written as formulas."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import onnx_ir as ir

from syncbn_convert.passes.gradients.gradient_tape import GradientTape
from syncbn_convert.passes.gradients.registry import Gradients, Rule, gradient


@dataclasses.dataclass(frozen=True)
class Expression:
    """A value on a tape; operators write nodes. Numbers become constants of its element type.

    Only operators that ONNX Runtime's CPU has in float32 and in float64 are offered.

    Attributes:
        tape: What nodes are written on.
        value: The value.
        dtype: Its element type.
    """

    tape: GradientTape
    value: ir.Value
    dtype: ir.DataType

    def __add__(self, other: Operand) -> Expression:
        return self._with("Add", self, other)

    def __radd__(self, other: float) -> Expression:
        return self._with("Add", other, self)

    def __sub__(self, other: Operand) -> Expression:
        return self._with("Sub", self, other)

    def __rsub__(self, other: float) -> Expression:
        return self._with("Sub", other, self)

    def __mul__(self, other: Operand) -> Expression:
        return self._with("Mul", self, other)

    def __rmul__(self, other: float) -> Expression:
        return self._with("Mul", other, self)

    def __truediv__(self, other: Operand) -> Expression:
        return self._with("Div", self, other)

    def __rtruediv__(self, other: float) -> Expression:
        return self._with("Div", other, self)

    def __neg__(self) -> Expression:
        return self._of(self.tape.op("Neg", self.value))

    def __gt__(self, other: Operand) -> Expression:
        return self._with("Greater", self, other, ir.DataType.BOOL)

    def __lt__(self, other: Operand) -> Expression:
        return self._with("Less", self, other, ir.DataType.BOOL)

    def __ge__(self, other: Operand) -> Expression:
        return self._with("GreaterOrEqual", self, other, ir.DataType.BOOL)

    def __le__(self, other: Operand) -> Expression:
        return self._with("LessOrEqual", self, other, ir.DataType.BOOL)

    def __and__(self, other: Expression) -> Expression:
        return self._with("And", self, other)

    def __invert__(self) -> Expression:
        return self._of(self.tape.op("Not", self.value))

    def equals(self, other: Operand) -> Expression:
        """Return where both are equal, bool."""
        return self._with("Equal", self, other, ir.DataType.BOOL)

    def apply(self, op_type: str) -> Expression:
        """Return `op_type(self)` of an operator that has one input and keeps the element type."""
        return self._of(self.tape.op(op_type, self.value))

    def choose(self, yes: Operand, no: Operand) -> Expression:
        """Return `yes` where this bool is true, else `no`; one of them is an expression."""
        given = yes if isinstance(yes, Expression) else no
        assert isinstance(given, Expression)
        chosen = self.tape.op("Where", self.value, given.wrap(yes).value, given.wrap(no).value)
        return Expression(self.tape, chosen, given.dtype)

    def cast(self, dtype: ir.DataType) -> Expression:
        """Return this in another element type."""
        if dtype == self.dtype:
            return self
        converted = self.tape.op("Cast", self.value, to=int(dtype))
        converted.type, converted.shape = ir.TensorType(dtype), self.value.shape
        return Expression(self.tape, converted, dtype)

    def wrap(self, operand: Operand) -> Expression:
        """Return a number as a constant of this element type, an expression as it is."""
        if isinstance(operand, Expression):
            return operand
        return self._of(self.tape.constant(operand, self.dtype))

    def sum_to(self, source: ir.Value, target: ir.Value) -> ir.Value:
        """Return the gradient of `target`, which was broadcast to `source`; this has its shape."""
        return self.tape.sum_to(self.value, source, target)

    def _with(
        self, op_type: str, left: Operand, right: Operand, dtype: ir.DataType | None = None
    ) -> Expression:
        written = self.tape.op(op_type, self.wrap(left).value, self.wrap(right).value)
        return Expression(self.tape, written, dtype or self.dtype)

    def _of(self, value: ir.Value) -> Expression:
        return Expression(self.tape, value, self.dtype)


Operand = Expression | float


@dataclasses.dataclass(frozen=True)
class Point:
    """Where an operator of one input, one output and no change of shape is differentiated.

    Attributes:
        node: The forward node.
        x: Its input.
        y: Its output.
        dy: The gradient of its output.
    """

    node: ir.Node
    x: Expression
    y: Expression
    dy: Expression

    def weight(self, condition: Expression) -> Expression:
        """Return one where a condition holds, else zero."""
        return condition.cast(self.y.dtype)

    def attribute(self, name: str, default: float) -> float:
        """Return a float attribute."""
        return self.node.attributes.get_float(name, default)


def pointwise(*op_types: str) -> Callable[[Callable[[Point], Expression]], Rule]:
    """Register the decorated function, which returns dX, as the rule of elementwise operators."""

    def register(derive: Callable[[Point], Expression]) -> Rule:
        @gradient(*op_types)
        @functools.wraps(derive)
        def rule(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
            x, y = forward(tape, node.inputs[0]), forward(tape, node.outputs[0])
            dy = arriving(tape, node, gradients)
            return [derive(Point(node, x, y, dy)).value, *[None] * (len(node.inputs) - 1)]

        return rule

    return register


@dataclasses.dataclass(frozen=True)
class Broadcast:
    """Where an operator is differentiated whose inputs are broadcast to its one output.

    Attributes:
        node: The forward node.
        inputs: Its inputs.
        y: Its output.
        dy: The gradient of its output.
    """

    node: ir.Node
    inputs: tuple[Expression, ...]
    y: Expression
    dy: Expression


def broadcasting(*op_types: str) -> Callable[[Callable[[Broadcast, int], Expression]], Rule]:
    """Register the decorated function as the rule of operators that broadcast.

    It is asked for the inputs whose gradient is wanted, by index, and returns that before
    broadcasting is undone.
    """

    def register(derive: Callable[[Broadcast, int], Expression]) -> Rule:
        @gradient(*op_types)
        @functools.wraps(derive)
        def rule(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
            inputs = tuple(forward(tape, value) for value in node.inputs)
            y, dy = forward(tape, node.outputs[0]), arriving(tape, node, gradients)
            at = Broadcast(node, inputs, y, dy)
            return [
                derive(at, index).sum_to(y.value, operand.value)
                if tape.wants(node, index)
                else None
                for index, operand in enumerate(inputs)
            ]

        return rule

    return register


def forward(tape: GradientTape, value: ir.Value | None) -> Expression:
    """Return a value of the forward graph as an expression."""
    assert value is not None
    return Expression(tape, value, tape.dtype(value))


def arriving(tape: GradientTape, node: ir.Node, gradients: Gradients, index: int = 0) -> Expression:
    """Return the gradient of output `index`, which there must be."""
    value = gradients[index]
    assert value is not None
    return Expression(tape, value, tape.dtype(node.outputs[index]))
