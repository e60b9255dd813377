"""What the bench of gradient rules draws: one node, its inputs, and how torch computes the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

Array = npt.NDArray[Any]
Oracle = Callable[..., Any]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One node with its inputs.

    Attributes:
        op_type: Of the node.
        inputs: Arrays; float64 ones are differentiated, and in other runs are float32. None is an
            input that is left out.
        oracle: Takes torch tensors of the float64 inputs and returns the outputs that get a
            gradient, one or a tuple; None where torch has no such mode.
        attributes: Of the node.
        outputs: How many the node has.
        flowing: The outputs that get a gradient.
        min_opset: The first opset that has the operator.
        max_opset: The last one in which ONNX Runtime runs it.
        reference: Whether ONNX's reference implementation computes the forward node, as ONNX
            Runtime has no float64 kernel, and not ONNX Runtime itself.
        single: Whether ONNX Runtime has what the rule writes in float32 only. If `reference` is not
            set, so has it the forward node, which is linear in each of its inputs.
        static: Which inputs have known sizes whatever the others have.
        frozen: Which float64 inputs nobody wants the gradient of.
        constants: Whether integers must be initializers, as the rule needs to know ranks.
        seeded: Whether another runtime draws other random numbers.
    """

    op_type: str
    inputs: Sequence[Array | None]
    oracle: Oracle | None
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    outputs: int = 1
    flowing: tuple[int, ...] = (0,)
    min_opset: int = 18
    max_opset: int = 26
    reference: bool = False
    single: bool = False
    static: tuple[int, ...] = ()
    frozen: tuple[int, ...] = ()
    constants: bool = False
    seeded: bool = False


@dataclasses.dataclass(frozen=True)
class Draw:
    """Draws shapes and attributes.

    Attributes:
        data: Where from.
        empty: Whether batches are empty.
    """

    data: st.DataObject
    empty: bool = False

    def one_of(self, *choices: T) -> T:
        """Return one of several things."""
        return self.data.draw(st.sampled_from(choices))

    def flag(self) -> bool:
        """Return true or false."""
        return self.data.draw(st.booleans())

    def integer(self, low: int, high: int) -> int:
        """Return a number, bounds included."""
        return self.data.draw(st.integers(low, high))

    def number(self, low: float, high: float) -> float:
        """Return a float32 number, bounds included, such as attributes are."""
        return float(np.float32(self.data.draw(st.floats(low, high, width=32))))

    def batch(self) -> int:
        """Return the size of a batch axis."""
        return 0 if self.empty else self.integer(1, 3)

    def shape(self, low: int = 1, high: int = 4) -> tuple[int, ...]:
        """Return a shape of `low` to `high` axes, the first of them a batch."""
        rank = self.integer(low, high)
        return (self.batch(), *(self.integer(1, 4) for _ in range(rank - 1)))[:rank]

    def broadcast(self, count: int) -> list[tuple[int, ...]]:
        """Return shapes that broadcast to that of the first: sizes of 1 and axes left out."""
        full = self.shape(1, 3)
        shapes = [full]
        for _ in range(count - 1):
            kept = self.integer(0, len(full))
            shapes.append(tuple(1 if self.flag() else size for size in full[len(full) - kept :]))
        return [shapes[index] for index in self.permutation(count)]

    def rng(self) -> np.random.Generator:
        """Return a generator of values."""
        return np.random.default_rng(self.integer(0, 2**16))

    def values(
        self,
        shape: Sequence[int],
        low: float = -2.0,
        high: float = 2.0,
        kinks: Sequence[float] = (),
    ) -> Array:
        """Return float64 numbers that float32 has, a hundredth away from kinks."""
        values = self.rng().uniform(low, high, size=tuple(shape))
        for kink in kinks:
            distance = np.abs(values - kink)
            values = np.where(distance < 0.01, kink + 0.01 + distance, values)
        return rounded(values)

    def distinct(self, shape: Sequence[int]) -> Array:
        """Return float64 numbers of which no two are nearer than 0.01."""
        count = int(np.prod(shape))
        order = self.rng().permutation(count)
        return rounded((order.reshape(tuple(shape)) - count / 2) * 0.03 + 0.011)

    def axes(self, rank: int, low: int = 0) -> list[int]:
        """Return some axes in any order, counted from either end."""
        chosen = self.data.draw(
            st.lists(st.integers(0, rank - 1), unique=True, min_size=min(low, rank))
        )
        return [axis - rank if self.flag() else axis for axis in chosen]

    def permutation(self, count: int) -> list[int]:
        """Return 0 to `count` - 1 in some order."""
        return self.data.draw(st.permutations(range(count)))

    def axis(self, rank: int) -> int:
        """Return one axis, counted from either end."""
        return self.integer(-rank, rank - 1)


def rounded(values: Array) -> Array:
    """Return float64 numbers rounded to what float32 has."""
    return np.asarray(values).astype(np.float32).astype(np.float64)


def ints(values: Any) -> Array:
    """Return int64 numbers."""
    return np.asarray(values, dtype=np.int64)
