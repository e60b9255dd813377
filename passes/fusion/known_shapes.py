"""Shapes that the model states, or that inference finds when they are asked for."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.graph.value_types import inferred_infos
from syncbn_convert.passes.fusion.affine import Refusal

Size = int | str | None


class Shapes:
    """Shapes of the main graph's values; inferred at most once.

    Args:
        model: Whose values they are.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._inferred: dict[str, ir.Shape] | None = None

    def of(self, value: ir.Value) -> list[Size]:
        """Return the sizes of `value`: numbers, names, or None.

        Raises:
            Refusal: if not even the rank is known.
        """
        shape = value.shape if value.shape is not None else self._infer().get(str(value.name))
        if shape is None:
            raise Refusal(f"the rank of '{value.name}' is not known")
        return [size if isinstance(size, int) else size.value for size in shape]

    def rank(self, value: ir.Value) -> int:
        """Return the rank of `value`.

        Raises:
            Refusal: if it is not known.
        """
        return len(self.of(value))

    def _infer(self) -> dict[str, ir.Shape]:
        if self._inferred is None:
            infos = (
                ir.serde.deserialize_value_info_proto(info, None)
                for info in inferred_infos(self._model)
            )
            self._inferred = {
                str(value.name): value.shape for value in infos if value.shape is not None
            }
        return self._inferred
