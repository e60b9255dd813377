"""What the operators that normalization is written in do to forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from syncbn_convert.graph import constants
from syncbn_convert.passes.recognition.forms import (
    CHANNEL,
    MEAN,
    VARIANCE,
    Form,
    Symbols,
    X,
    broadcast,
)
from syncbn_convert.passes.recognition.layouts import Layouts
from syncbn_convert.passes.recognition.polynomials import Polynomial, number, symbol


class Constants:
    """What the constants of a model hold.

    Args:
        model: The model.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._known: dict[int, ir.TensorProtocol | None] = {}

    def tensor(self, value: ir.Value | None) -> ir.TensorProtocol | None:
        """Return what a value always holds, or None."""
        if value is None:
            return None
        if id(value) not in self._known:
            self._known[id(value)] = constants.constant_tensor(value, self._model)
        return self._known[id(value)]


class Algebra:
    """Computes forms.

    Args:
        constants: The constants of the model.
        symbols: Symbols of the model.
        layouts: Tells which nodes are Transposes.
    """

    def __init__(self, constants: Constants, symbols: Symbols, layouts: Layouts) -> None:
        self._constants = constants
        self._symbols = symbols
        self._layouts = layouts

    def apply(self, node: ir.Node, operands: Sequence[Form]) -> Form | None:
        """Return the form of a node's output; None where it has none.

        Args:
            node: The node.
            operands: Forms of the inputs that are no axes, shapes or exponents.
        """
        rule = _RULES.get(node.op_type)
        return rule(self, node, operands) if rule is not None else None

    def integers(self, node: ir.Node, attribute: str, index: int) -> list[int] | None:
        """Return what newer opsets have as an input and older ones as an attribute."""
        if attribute in node.attributes:
            return list(node.attributes.get_ints(attribute, ()))
        value = node.inputs[index] if len(node.inputs) > index else None
        tensor = self._constants.tensor(value)
        return [int(entry) for entry in tensor.numpy().reshape(-1)] if tensor is not None else None

    def _sum(self, node: ir.Node, operands: Sequence[Form]) -> Form | None:
        one, two = operands
        sign = -1.0 if node.op_type == "Sub" else 1.0
        return _joined(one, two, one.polynomial.plus(two.polynomial, sign))

    def _product(self, node: ir.Node, operands: Sequence[Form]) -> Form | None:
        del node
        one, two = operands
        return _joined(one, two, one.polynomial.times(two.polynomial))

    def _quotient(self, node: ir.Node, operands: Sequence[Form]) -> Form | None:
        del node
        one, two = operands
        divisor = self._symbols.reciprocal(two.polynomial)
        return None if divisor is None else _joined(one, two, one.polynomial.times(divisor))

    def _negated(self, node: ir.Node, operands: Sequence[Form]) -> Form | None:
        del node
        (form,) = operands
        return Form(form.polynomial.times(number(-1.0)), form.axes)

    def _reciprocal(self, node: ir.Node, operands: Sequence[Form]) -> Form | None:
        del node
        return _changed(operands[0], self._symbols.reciprocal(operands[0].polynomial))

    def _root(self, node: ir.Node, operands: Sequence[Form]) -> Form | None:
        del node
        return _changed(operands[0], self._symbols.square_root(operands[0].polynomial))

    def _power(self, node: ir.Node, operands: Sequence[Form]) -> Form | None:
        exponent = self._constants.tensor(node.inputs[1])
        if exponent is None or exponent.size != 1:
            return None
        form, power = operands[0], float(exponent.numpy().reshape(-1)[0])
        if power == 2.0:
            return _changed(form, form.polynomial.times(form.polynomial))
        if abs(power) != 0.5:
            return None
        root = self._symbols.square_root(form.polynomial)
        return _changed(form, root.inverse() if power < 0 and root is not None else root)

    def _not_negative(self, node: ir.Node, operands: Sequence[Form]) -> Form | None:
        """A variance that is kept from falling below 0 by rounding."""
        del node
        form, *others = operands
        if any(other.polynomial.number != 0.0 for other in others):
            return None
        return form if form.polynomial == symbol(VARIANCE) else None

    def _mean(self, node: ir.Node, operands: Sequence[Form]) -> Form | None:
        (form,) = operands
        reduced = self.integers(node, "axes", 1)
        rank = len(form.axes)
        if not reduced or None in form.axes:
            return None
        axes = {axis % rank for axis in reduced}
        kept = [axis for axis in range(rank) if axis not in axes]
        if [form.axes[axis] for axis in kept] != [CHANNEL]:
            return None
        polynomial = _moment(form.polynomial)
        if polynomial is None:
            return None
        if not node.attributes.get_int("keepdims", 1):
            return Form(polynomial, (CHANNEL,))
        return Form(polynomial, tuple(CHANNEL if a in kept else None for a in range(rank)))

    def _laid_out(self, node: ir.Node, operands: Sequence[Form]) -> Form | None:
        (form,) = operands
        order = self._layouts.order(node, len(form.axes))
        if order is None:
            return None
        return Form(form.polynomial, tuple(form.axes[axis] for axis in order))

    def _squeezed(self, node: ir.Node, operands: Sequence[Form]) -> Form | None:
        (form,) = operands
        axes = self.integers(node, "axes", 1)
        if axes is None:
            return None
        gone = {axis % len(form.axes) for axis in axes} if form.axes else set()
        if any(form.axes[axis] is not None for axis in gone):
            return None
        return Form(form.polynomial, tuple(a for i, a in enumerate(form.axes) if i not in gone))

    def _unsqueezed(self, node: ir.Node, operands: Sequence[Form]) -> Form | None:
        (form,) = operands
        axes = self.integers(node, "axes", 1)
        if axes is None:
            return None
        rank = len(form.axes) + len(axes)
        added = {axis % rank for axis in axes}
        if len(added) != len(axes):
            return None
        old = iter(form.axes)
        return Form(form.polynomial, tuple(None if i in added else next(old) for i in range(rank)))

    def _reshaped(self, node: ir.Node, operands: Sequence[Form]) -> Form | None:
        """One value for each channel stays that wherever its axis goes."""
        (form,) = operands
        if form.holds_input:
            return self._laid_out(node, operands)
        tensor = self._constants.tensor(node.inputs[1])
        if tensor is None:
            return None
        shape = tensor.numpy().tolist()
        if CHANNEL not in form.axes:
            return Form(form.polynomial, (None,) * len(shape)) if set(shape) <= {1} else None
        large = [axis for axis, size in enumerate(shape) if size != 1]
        if len(large) != 1 or shape[large[0]] == 0:
            return None
        return Form(
            form.polynomial, tuple(CHANNEL if a == large[0] else None for a in range(len(shape)))
        )


def operand_count(node: ir.Node) -> int:
    """Return how many of a node's inputs have to have forms."""
    return 1 if node.op_type in _FIRST_INPUT_ONLY else len(node.inputs)


def is_known(node: ir.Node) -> bool:
    """Whether there is a rule for the node's operator."""
    return node.op_type in _RULES


def _joined(one: Form, two: Form, polynomial: Polynomial) -> Form | None:
    axes = broadcast(one.axes, two.axes)
    return None if axes is None else Form(polynomial, axes)


def _changed(form: Form, polynomial: Polynomial | None) -> Form | None:
    return None if polynomial is None else Form(polynomial, form.axes)


def _moment(polynomial: Polynomial) -> Polynomial | None:
    """Return the mean over all elements of a channel: that of X^2 is its variance + mean^2."""
    mean = symbol(MEAN)
    moments = {
        0: number(1.0),
        1: mean,
        2: symbol(VARIANCE).plus(mean.times(mean)),
    }
    found = number(0.0)
    for power, factor in polynomial.by_power_of(X).items():
        if power not in moments:
            return None
        found = found.plus(factor.times(moments[power]))
    return found


_Rule = Callable[[Algebra, ir.Node, Sequence[Form]], Form | None]
_RULES: dict[str, _Rule] = {
    "Add": Algebra._sum,
    "Sub": Algebra._sum,
    "Mul": Algebra._product,
    "Div": Algebra._quotient,
    "Neg": Algebra._negated,
    "Identity": Algebra._laid_out,
    "Cast": Algebra._laid_out,
    "Reciprocal": Algebra._reciprocal,
    "Sqrt": Algebra._root,
    "Pow": Algebra._power,
    "Max": Algebra._not_negative,
    "Relu": Algebra._not_negative,
    "ReduceMean": Algebra._mean,
    "Transpose": Algebra._laid_out,
    "Squeeze": Algebra._squeezed,
    "Unsqueeze": Algebra._unsqueezed,
    "Reshape": Algebra._reshaped,
}
_FIRST_INPUT_ONLY = frozenset(["Pow", "ReduceMean", "Squeeze", "Unsqueeze", "Reshape"])
