"""Shapes that the model states, or that inference finds when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from syncbn_convert.graph.value_types import inferred
from syncbn_convert.passes.fusion.affine import Refusal

Size = int | str | None


class Shapes:
    """Shapes of a model's values; inferred at most once, of functions not at all.

    Args:
        model: Whose values they are.
        known: What was inferred before; nothing if nothing was.
    """

    def __init__(self, model: ir.Model, known: Mapping[ir.Value, ir.Value] | None = None) -> None:
        self._model = model
        self._inferred = _shapes_in(known) if known else None

    def of(self, value: ir.Value) -> list[Size]:
        """Return the sizes of `value`: numbers, names, or None.

        Raises:
            Refusal: if not even the rank is known.
        """
        shape = value.shape if value.shape is not None else self._infer().get(value)
        if shape is None:
            raise Refusal(f"the rank of '{value.name}' is not known")
        return [size if isinstance(size, int) else size.value for size in shape]

    def rank(self, value: ir.Value) -> int:
        """Return the rank of `value`.

        Raises:
            Refusal: if it is not known.
        """
        return len(self.of(value))

    def copy(self, old: ir.Value, new: ir.Value) -> None:
        """Know of a new value what is known of another."""
        if self._inferred is not None and old in self._inferred:
            self._inferred[new] = self._inferred[old]

    def _infer(self) -> dict[ir.Value, ir.Shape]:
        if self._inferred is None:
            self._inferred = _shapes_in(inferred(self._model))
        return self._inferred


def _shapes_in(known: Mapping[ir.Value, ir.Value]) -> dict[ir.Value, ir.Shape]:
    return {value: given.shape for value, given in known.items() if given.shape is not None}
