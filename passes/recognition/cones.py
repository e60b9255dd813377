"""Forms of all values that follow from one input and constants."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator

import onnx_ir as ir

from syncbn_convert.graph import graphs
from syncbn_convert.passes.recognition.forms import CHANNEL, Axes, Form, Symbols, X
from syncbn_convert.passes.recognition.layouts import Layouts
from syncbn_convert.passes.recognition.operators import Algebra, Constants, is_known, operand_count
from syncbn_convert.passes.recognition.polynomials import number, symbol

_MOST_TERMS = 8
"""Of a polynomial; a normalization has three, and its variance on the way no more than these."""
_MOST_STEPS = 16
"""Operators in a row that make a constant."""


_LONGEST_WAY = 64
"""Operators from X to what is normalized; exporters write a fourth of that, casts included."""


class ConstantForms:
    """Forms of constants: numbers, one value for each channel, and what is made of such.

    Args:
        model: The model.
    """

    def __init__(self, model: ir.Model) -> None:
        self.symbols = Symbols()
        self.constants = Constants(model)
        self.layouts = Layouts(model)
        self.algebra = Algebra(self.constants, self.symbols, self.layouts)
        self._forms: dict[int, Form | None] = {}

    def form(self, value: ir.Value, steps: int = _MOST_STEPS) -> Form | None:
        """Return the form of a constant; None for any other value."""
        if id(value) not in self._forms:
            self._forms[id(value)] = self._computed(value, steps) or self._read(value)
        return self._forms[id(value)]

    def _computed(self, value: ir.Value, steps: int) -> Form | None:
        node = value.producer()
        if node is None or not steps or not is_usable(node):
            return None
        operands = []
        for operand in node.inputs[: operand_count(node)]:
            form = self.form(operand, steps - 1) if operand is not None else None
            if form is None:
                return None
            operands.append(form)
        return self.algebra.apply(node, operands)

    def _read(self, value: ir.Value) -> Form | None:
        tensor = self.constants.tensor(value)
        if tensor is None or not tensor.dtype.is_floating_point() or not tensor.size:
            return None
        sizes = tensor.shape.numpy()
        large = [axis for axis, size in enumerate(sizes) if size != 1]
        if not large:
            return Form(number(float(tensor.numpy().reshape(-1)[0])), (None,) * len(sizes))
        if len(large) > 1:
            return None
        axes = tuple(CHANNEL if axis == large[0] else None for axis in range(len(sizes)))
        return Form(self.symbols.of_constant(value), axes)


class Cone:
    """The values of a graph that follow from `root`, as far as they have forms.

    Args:
        graph: The graph; `root` may come from around it.
        root: The input X.
        rank: Number of its axes.
        channel: Which of them is that of the channels.
        constants: Forms of constants.
    """

    def __init__(
        self,
        graph: ir.Graph,
        root: ir.Value,
        rank: int,
        channel: int,
        constants: ConstantForms,
    ) -> None:
        self.root = root
        self._graph = graph
        self._constants = constants
        axes = tuple(CHANNEL if axis == channel else axis for axis in range(rank))
        self.forms: dict[ir.Value, Form] = {root: Form(symbol(X), axes)}
        self._grow()

    def form(self, value: ir.Value | None) -> Form | None:
        """Return the form of a value in the cone or of a constant."""
        if value is None:
            return None
        return self.forms.get(value) or self._constants.form(value)

    @functools.cached_property
    def layouts(self) -> list[tuple[ir.Value, Axes]]:
        """The values that are X, with their axes; those with the channels at axis 1 first."""
        found = [(value, form.axes) for value, form in self.forms.items() if form.is_input]
        return sorted(found, key=lambda layout: layout[1].index(CHANNEL) != 1)

    def interior(self, value: ir.Value) -> list[ir.Node]:
        """Return the nodes between X, in whatever layout, and `value`, the last first."""
        found: dict[ir.Node, None] = {}
        pending = [value]
        while pending:
            current = pending.pop()
            form, node = self.forms.get(current), current.producer()
            if form is None or form.is_input or node is None or node in found:
                continue
            found[node] = None
            pending.extend(operand for operand in node.inputs if operand is not None)
        return list(found)

    def _grow(self) -> None:
        pending = deque([(self.root, 0)])
        while pending:
            value, steps = pending.popleft()
            for node in self._readers(value) if steps < _LONGEST_WAY else ():
                operands = [self.form(value) for value in node.inputs[: operand_count(node)]]
                known = [form for form in operands if form is not None]
                if len(known) < len(operands):
                    continue
                form = self._constants.algebra.apply(node, known)
                if form is not None and len(form.polynomial.terms) <= _MOST_TERMS:
                    self.forms[node.outputs[0]] = form
                    pending.append((node.outputs[0], steps + 1))

    def _readers(self, value: ir.Value) -> Iterator[ir.Node]:
        for usage in list(value.uses()):
            node = usage.node
            here = node.graph is self._graph
            if here and is_usable(node) and node.outputs[0] not in self.forms:
                yield node


def is_usable(node: ir.Node) -> bool:
    """Whether a node's output can have a form."""
    return (
        node.domain in graphs.STANDARD_DOMAINS
        and len(node.outputs) == 1
        and len(node.inputs) > 0
        and is_known(node)
    )
