"""A model that is put together node by node: scopes, names, constants in many spellings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]
T = TypeVar("T")
Shape = tuple[int, ...]

_NAMES = ("t{}", "層 {}/ж", "t{}.next", "t{}/fused", "block.{}/conv/add", "{}", "w/fused_{}")
_LOCAL = "local"
_CONSTANTS_OF_ANY_TYPE = 9
"""First opset whose Constant holds whole numbers."""


@dataclasses.dataclass(frozen=True)
class Draw:
    """Draws structure from hypothesis, and numbers from a generator that it seeds."""

    data: st.DataObject
    numbers: np.random.Generator

    def one_of(self, *choices: T) -> T:
        """Return one of several things."""
        return self.data.draw(st.sampled_from(choices))

    def flag(self, one_in: int = 2) -> bool:
        """Return true once in so many times."""
        return self.data.draw(st.integers(1, one_in)) == one_in

    def integer(self, low: int, high: int) -> int:
        """Return a number, bounds included."""
        return self.data.draw(st.integers(low, high))

    def pick(self, *choices: T, likely: float = 0.0) -> T:
        """Return one of several things that no failure depends on much: the first `likely`."""
        if self.numbers.random() < likely:
            return choices[0]
        return choices[int(self.numbers.integers(len(choices)))]

    def normal(self, *shape: int) -> Array:
        """Return normally distributed numbers."""
        return self.numbers.normal(size=shape)

    def uniform(self, low: float, high: float, *shape: int) -> Array:
        """Return evenly distributed numbers."""
        return self.numbers.uniform(low, high, shape)


@dataclasses.dataclass(frozen=True)
class Value:
    """A value that nodes can read."""

    name: str
    shape: Shape
    dtype: np.dtype[Any]


class Sketch:
    """What all scopes of a model share.

    Args:
        draw: Decides.
    """

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.opset = draw.integer(7, 24)
        self.dtype: np.dtype[Any] = np.dtype(draw.one_of(*[np.float32] * 6, np.float16, np.float64))
        self.ir_version = draw.one_of(8, 8, 10, 4, 3) if self.opset <= 17 else draw.one_of(8, 10)
        self.functions: dict[str, onnx.FunctionProto] = {}
        self.inputs: dict[str, onnx.ValueInfoProto] = {}
        self.fed: dict[str, Array] = {}
        self.feeds: dict[str, Array] = {}
        self.initializers: dict[str, Array] = {}
        self.infos: list[onnx.ValueInfoProto] = []
        self.main = Scope(self, "main")

    def input(self, value: Value, array: Array, sizes: Sequence[int | str | None]) -> Value:
        """Add an input."""
        element = helper.np_dtype_to_tensor_dtype(value.dtype)
        self.inputs[value.name] = helper.make_tensor_value_info(value.name, element, sizes)
        self.feeds[value.name] = array
        return value

    def model(self, outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """Return the whole model."""
        inputs = dict(self.inputs)
        if self.ir_version < 4:
            for name, array in self.initializers.items():
                element = helper.np_dtype_to_tensor_dtype(array.dtype)
                inputs.setdefault(name, helper.make_tensor_value_info(name, element, array.shape))
        graph = helper.make_graph(
            self.main.nodes,
            "random",
            list(inputs.values()),
            list(outputs),
            [numpy_helper.from_array(array, name) for name, array in self.initializers.items()],
            value_info=self.infos,
        )
        imports = [helper.make_opsetid("", self.opset)]
        if self.functions:
            imports.append(helper.make_opsetid(_LOCAL, 1))
        model = helper.make_model(graph, opset_imports=imports, ir_version=self.ir_version)
        model.functions.extend(self.functions.values())
        return model


class Scope:
    """Where nodes are added: the main graph, a body of If, or a function.

    Args:
        sketch: The model.
        kind: `main`, `branch` or `function`.
        outer: Scope whose values can be read, too.
    """

    def __init__(self, sketch: Sketch, kind: str, outer: Scope | None = None) -> None:
        self.sketch = sketch
        self.kind = kind
        self.outer = outer
        self.nodes: list[onnx.NodeProto] = []
        self.taken: set[str] = set() if outer is None or kind == "function" else outer.taken
        self.node_names: set[str] = set()
        self.passed: list[tuple[str, Value]] = []
        """Inputs of a function, and what its caller passes."""
        self.statistics: list[Value] = []
        """Values beside the way, of the main graph, that may be returned."""
        self.layers: dict[int, list[list[Value]]] = {}
        """Parameters of a normalization by number of channels."""
        self.depth: int = 0 if outer is None else outer.depth + 1
        self._stored: dict[tuple[str, Shape], list[Value]] = {}
        self._count = 0

    @property
    def draw(self) -> Draw:
        """What decides."""
        return self.sketch.draw

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return self.sketch.opset

    def name(self) -> str:
        """Return a name for a new value, odd ones among them."""
        pattern = self.draw.pick(*_NAMES, likely=0.4)
        while (name := pattern.format(self._count)) in self.taken or not name:
            self._count += 1
        self._count += 1
        self.taken.add(name)
        return name

    def node_name(self, op_type: str) -> str:
        """Return a name for a new node, or none."""
        wanted = self.draw.pick("", op_type, f"{op_type}/add", "bn", "層", likely=0.2)
        if not wanted or wanted in self.node_names:
            wanted = self.draw.pick("", f"{wanted}_{len(self.nodes)}")
        self.node_names.add(wanted)
        return wanted

    def add(
        self,
        op_type: str,
        inputs: Sequence[Value | None],
        shape: Shape,
        *,
        dtype: np.dtype[Any] | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> Value:
        """Add a node with one output."""
        return self.add_all(op_type, inputs, [shape], dtype=dtype, domain=domain, **attributes)[0]

    def add_all(
        self,
        op_type: str,
        inputs: Sequence[Value | None],
        shapes: Sequence[Shape],
        *,
        dtype: np.dtype[Any] | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> list[Value]:
        """Add a node with an output of each shape."""
        first = next((value for value in inputs if value is not None), None)
        dtype = dtype or (first.dtype if first is not None else self.sketch.dtype)
        made = [Value(self.name(), shape, dtype) for shape in shapes]
        self.nodes.append(
            helper.make_node(
                op_type,
                ["" if value is None else value.name for value in inputs],
                [value.name for value in made],
                name=self.node_name(op_type),
                domain=domain,
                **attributes,
            )
        )
        if self.kind == "main" and self.draw.pick(False, True, likely=0.5):
            for value in made:
                element = helper.np_dtype_to_tensor_dtype(value.dtype)
                static = not self.is_dynamic and self.draw.pick(True, False)
                sizes = value.shape if static else [None] * len(value.shape)
                info = helper.make_tensor_value_info(value.name, element, sizes)
                self.sketch.infos.append(info)
        return made

    is_dynamic = True

    def stored(self, array: Array) -> Value:
        """Return a constant: an initializer, a Constant, or what a caller passes."""
        a_node = self.draw.flag(2 if self.kind == "function" else 6)
        if a_node and (array.dtype.kind == "f" or self.opset >= _CONSTANTS_OF_ANY_TYPE):
            return self._constant_node(array)
        return self._passed(array) if self.kind == "function" else self._initializer(array)

    def _passed(self, array: Array) -> Value:
        assert self.outer is not None
        outside = self.outer.whole(*array) if array.dtype == np.int64 else self.outer.stored(array)
        inside = Value(self.name(), array.shape, array.dtype)
        self.passed.append((inside.name, outside))
        return inside

    def whole(self, *numbers: int) -> Value:
        """Return a vector of whole numbers."""
        array = np.array(numbers, np.int64)
        if self.kind != "function":
            return self._initializer(array)
        if self.opset >= _CONSTANTS_OF_ANY_TYPE:
            return self._constant_node(array)
        return self._passed(array)

    def constant(self, array: Array, role: str = "") -> Value:
        """Return a constant of the model's type in one of many spellings, or one used before."""
        array = np.asarray(array).astype(self.sketch.dtype)
        key = role, array.shape
        if role and self._stored.get(key) and self.draw.flag(4):
            return self.draw.one_of(*self._stored[key])
        value = self._spelled(array)
        self._stored.setdefault(key, []).append(value)
        if role and self.kind == "main" and self.sketch.ir_version >= 4 and self.draw.flag(40):
            self._let_be_fed(value, array)
        return value

    def _let_be_fed(self, value: Value, array: Array) -> None:
        if value.name not in self.sketch.initializers:
            return
        self.sketch.input(value, array, array.shape)
        del self.sketch.feeds[value.name]
        self.sketch.fed[value.name] = array * array.dtype.type(1.5)

    def _initializer(self, array: Array) -> Value:
        name = self.name()
        self.sketch.initializers[name] = array
        return Value(name, array.shape, array.dtype)

    def _constant_node(self, array: Array) -> Value:
        tensor = numpy_helper.from_array(array)
        return self.add("Constant", [], array.shape, dtype=array.dtype, value=tensor)

    def _spelled(self, array: Array) -> Value:
        if not self.draw.flag(3) or not array.ndim:
            return self.stored(array)
        return self.draw.one_of(*_SPELLINGS)(self, array)


Spelling = Callable[[Scope, Array], Value]


def _identity(scope: Scope, array: Array) -> Value:
    return scope.add("Identity", [scope.stored(array)], array.shape)


def _cast(scope: Scope, array: Array) -> Value:
    narrow = array.astype(np.float16 if array.dtype != np.float16 else np.float32)
    element = helper.np_dtype_to_tensor_dtype(array.dtype)
    return scope.add("Cast", [scope.stored(narrow)], array.shape, dtype=array.dtype, to=element)


def _transpose(scope: Scope, array: Array) -> Value:
    order = [*range(1, array.ndim), 0]
    turned = np.ascontiguousarray(np.transpose(array, np.argsort(order)))
    return scope.add("Transpose", [scope.stored(turned)], array.shape, perm=order)


def _reshape(scope: Scope, array: Array) -> Value:
    flat = scope.stored(array.reshape(-1))
    return scope.add("Reshape", [flat, scope.whole(*array.shape)], array.shape)


def _mul(scope: Scope, array: Array) -> Value:
    half = scope.stored(np.array(0.5, array.dtype))
    return scope.add("Mul", [scope.stored(array), half], array.shape)


def _concat(scope: Scope, array: Array) -> Value:
    if len(array) < 2:
        return scope.stored(array)
    parts = [scope.stored(part) for part in (array[:1], array[1:])]
    return scope.add("Concat", parts, array.shape, axis=0)


def _slice(scope: Scope, array: Array) -> Value:
    longer = scope.stored(np.concatenate([array, array]))
    return sliced(scope, longer, 0, 0, len(array))


def _expand(scope: Scope, array: Array) -> Value:
    if scope.opset < 8:
        return scope.stored(array)
    one = scope.stored(array.reshape(-1)[:1].copy())
    return scope.add("Expand", [one, scope.whole(*array.shape)], array.shape)


def _unsqueeze(scope: Scope, array: Array) -> Value:
    return unsqueezed(scope, scope.stored(array[0].copy() if len(array) == 1 else array), array)


def unsqueezed(scope: Scope, value: Value, array: Array) -> Value:
    """Give an array the axis 0 that it lacks."""
    if value.shape == array.shape:
        return value
    if scope.opset >= 13:
        return scope.add("Unsqueeze", [value, scope.whole(0)], array.shape)
    return scope.add("Unsqueeze", [value], array.shape, axes=[0])


def sliced(scope: Scope, value: Value, axis: int, start: int, end: int) -> Value:
    """Return a part of a value along an axis."""
    shape = (*value.shape[:axis], end - start, *value.shape[axis + 1 :])
    if scope.opset >= 10:
        bounds = [scope.whole(start), scope.whole(end), scope.whole(axis)]
        return scope.add("Slice", [value, *bounds], shape)
    return scope.add("Slice", [value], shape, starts=[start], ends=[end], axes=[axis])


_SPELLINGS: tuple[Spelling, ...] = (
    _identity, _cast, _transpose, _reshape, _mul, _concat, _slice, _expand, _unsqueeze,
)  # fmt: skip
