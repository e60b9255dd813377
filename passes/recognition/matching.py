"""Where a model holds a normalization in elementwise operators."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import onnx_ir as ir

from syncbn_convert.graph.value_types import inferred_types
from syncbn_convert.passes.fusion.known_shapes import Size
from syncbn_convert.passes.recognition.cones import Cone, ConstantForms, is_usable
from syncbn_convert.passes.recognition.forms import CHANNEL, Form
from syncbn_convert.passes.recognition.polynomials import INVERSE_ROOT
from syncbn_convert.passes.recognition.roles import Roles, roles_of
from syncbn_convert.passes.recognition.weights_before import Reached, channels_of_weights

_BINARY = frozenset(["Mul", "Div", "Add", "Sub"])
_MOST_STEPS = 4
"""From where the root comes in back to X: scale, mean, and one to spare for each."""


@dataclasses.dataclass(frozen=True)
class Match:
    """A normalization.

    Attributes:
        root: What is normalized.
        layout: Axis of `root` for each axis of `x`.
        x: A layout of it in the element type of `y`, if possible with the channels at axis 1.
        y: The result.
        axis: Channel axis of `x`.
        sizes: Sizes of `x`.
        order: Axis of `x` for each axis of `y`.
        dtype: Element type of both.
        channels: Number of channels.
        roles: The parameters.
        interior: The nodes between, the last first.
    """

    root: ir.Value
    layout: tuple[int, ...]
    x: ir.Value
    y: ir.Value
    axis: int
    sizes: tuple[Size, ...]
    order: tuple[int, ...]
    dtype: ir.DataType
    channels: int
    roles: Roles
    interior: list[ir.Node]

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.sizes)


@dataclasses.dataclass(frozen=True)
class _Start:
    """An input that may be normalized over an axis."""

    value: ir.Value
    axis: int
    rank: int


class Finder:
    """Finds normalizations in a graph.

    Args:
        model: The model, of an opset that broadcasts as NumPy does.
        graph: Its graph, or a body below it.
        affine: Whether to find maps X * scale + bias behind weights, too.
    """

    def __init__(self, model: ir.Model, graph: ir.Graph, *, affine: bool) -> None:
        self._graph = graph
        self._affine = affine
        self._constants = ConstantForms(model)
        self._layouts = self._constants.layouts
        self._model = model
        self._types: dict[ir.Value, ir.DataType] | None = None

    def find(self) -> list[Match]:
        """Return the normalizations, in the order of the graph, none inside another."""
        order = {node: index for index, node in enumerate(self._graph)}
        found: dict[ir.Value, Match] = {}
        seen: set[tuple[ir.Value, int]] = set()
        for start in self._starts():
            if (start.value, start.axis) not in seen:
                seen.add((start.value, start.axis))
                for match in self._matches(start, order):
                    known = found.get(match.y)
                    if known is None or match.roles.rank > known.roles.rank:
                        found[match.y] = match
        matches = sorted(found.values(), key=lambda match: order[match.interior[0]])
        return _apart(matches)

    def _starts(self) -> Iterator[_Start]:
        for node in self._graph:
            if not is_usable(node):
                continue
            if node.op_type == "ReduceMean":
                yield from self._start_of_mean(node)
            elif node.op_type in _BINARY and len(node.inputs) == 2:
                for one, two in (node.inputs, node.inputs[::-1]):
                    if one is not None and two is not None:
                        yield from self._start_of_product(one, self._constants.form(two))

    def _start_of_mean(self, node: ir.Node) -> Iterator[_Start]:
        x = node.inputs[0]
        reduced = self._constants.algebra.integers(node, "axes", 1)
        rank = self._layouts.rank(x)
        if x is None or rank is None or not reduced:
            return
        kept = set(range(rank)) - {axis % rank for axis in reduced}
        if len(kept) == 1:
            yield from self._stripped(x, kept.pop(), rank)

    def _start_of_product(self, x: ir.Value, form: Form | None) -> Iterator[_Start]:
        """Start at each step of the way that may be part of the normalization."""
        rank = self._layouts.rank(x)
        if form is None or rank is None or CHANNEL not in form.axes:
            return
        roots = any(name.startswith(INVERSE_ROOT) for name in form.polynomial.symbols)
        axis = rank - len(form.axes) + form.axes.index(CHANNEL)
        if not (roots or self._affine) or axis < 0:
            return
        current: ir.Value | None = x
        for _ in range(_MOST_STEPS):
            if current is None or self._layouts.rank(current) != rank:
                break
            yield from self._stripped(current, axis, rank)
            current = self._before(current)

    def _before(self, value: ir.Value) -> ir.Value | None:
        """Return what an elementwise operator with a constant was applied to."""
        node = value.producer()
        if node is None or node.op_type not in _BINARY or not is_usable(node):
            return None
        for one, two in (node.inputs, node.inputs[::-1]):
            if two is not None and self._constants.form(two) is not None:
                return one
        return None

    def _stripped(self, value: ir.Value, axis: int, rank: int) -> Iterator[_Start]:
        """Start at what a value is a layout of."""
        while (node := value.producer()) is not None and is_usable(node):
            before, order = node.inputs[0], self._layouts.order(node, rank)
            if before is None or order is None or node.graph is not self._graph:
                break
            if node.op_type == "Cast" and not self._is_floating(before):
                break
            axis, value = order[axis], before
        samples_are_channels = axis == 0 or rank < 2
        if not samples_are_channels and self._constants.constants.tensor(value) is None:
            yield _Start(value, axis, rank)

    def _matches(self, start: _Start, order: dict[ir.Node, int]) -> Iterator[Match]:
        cone = Cone(self._graph, start.value, start.rank, start.axis, self._constants)
        found: dict[ir.Value, Roles] = {}
        for value, form in cone.forms.items():
            node = value.producer()
            if node not in order or len(form.axes) != start.rank or None in form.axes:
                continue
            roles = roles_of(form.polynomial, self._constants.symbols)
            if roles is not None and (roles.epsilon is not None or self._affine):
                found[value] = roles
        taken: set[ir.Value] = set()
        for value in sorted(found, key=lambda value: order[_maker(value)]):
            interior = cone.interior(value)
            inside = {node.outputs[0] for node in interior} - {value}
            if inside & taken or not _is_last(value, found):
                continue
            match = self._match(value, found[value], cone, start.axis)
            if match is not None and self._is_clear(match):
                taken.add(value)
                yield match

    def _match(self, y: ir.Value, roles: Roles, cone: Cone, channel: int) -> Match | None:
        dtype = self._dtype(y)
        layouts = (layout for layout in cone.layouts if self._dtype(layout[0]) == dtype)
        found = next(layouts, None)
        if found is None or dtype is None:
            return None
        x, axes = found
        axis, sizes = axes.index(CHANNEL), self._layouts.sizes(x)
        channels = self._channels(sizes, axis, roles) if sizes is not None else None
        if sizes is None or channels is None:
            return None
        order = tuple(axes.index(axis) for axis in cone.forms[y].axes)
        return Match(
            root=cone.root,
            layout=tuple(channel if of_root == CHANNEL else of_root or 0 for of_root in axes),
            x=x,
            y=y,
            axis=axis,
            sizes=tuple(sizes),
            order=order,
            dtype=dtype,
            channels=channels,
            roles=roles,
            interior=cone.interior(y),
        )

    def _channels(self, known: list[Size], axis: int, roles: Roles) -> int | None:
        """Return the number of channels, if it is known and that of every parameter."""
        sizes = {size for size in [known[axis]] if isinstance(size, int)}
        for parameter in (roles.scale, roles.bias, roles.mean, roles.variance):
            if parameter is not None:
                tensor = self._constants.constants.tensor(parameter.value)
                sizes.add(tensor.size if tensor is not None else 0)
        return sizes.pop() if len(sizes) == 1 else None

    def _is_clear(self, match: Match) -> bool:
        """Whether the axis is that of the channels, as far as can be told."""
        if match.roles.of_batch:
            return not self._folds_samples(match.root)
        reached = channels_of_weights(match.x, match.axis, match.rank, self._layouts)
        if match.roles.epsilon is None:
            return reached is Reached.CHANNELS
        return reached is not Reached.OTHER

    def _folds_samples(self, x: ir.Value) -> bool:
        """Whether a Reshape made one sample of all, as instance normalization is written."""
        node, sizes = x.producer(), self._layouts.sizes(x)
        if node is None or node.op_type not in ("Reshape", "Unsqueeze"):
            return False
        return sizes is None or sizes[0] == 1

    def _is_floating(self, value: ir.Value) -> bool:
        dtype = self._dtype(value)
        return dtype is not None and dtype.is_floating_point()

    def _dtype(self, value: ir.Value) -> ir.DataType | None:
        if value.dtype is not None:
            return value.dtype
        if self._types is None:
            self._types = inferred_types(self._model, [value])
        return self._types.get(value)


def _maker(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _is_last(value: ir.Value, found: dict[ir.Value, Roles]) -> bool:
    """Whether a value is not only a step on the way to what is a normalization as well."""
    if value.is_graph_output():
        return True
    readers = [usage.node for usage in value.uses()]
    return not readers or not all(
        reader.op_type != "Cast" and reader.outputs[0] in found for reader in readers
    )


def _apart(matches: Iterable[Match]) -> list[Match]:
    """Leave out what is part of another."""
    kept: list[Match] = []
    results: set[ir.Value] = set()
    for match in matches:
        inside = {node.outputs[0] for node in match.interior} - {match.y}
        if not inside & results:
            kept.append(match)
            results.add(match.y)
    return kept
