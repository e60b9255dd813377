"""The tape that writes nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir


class Tape:
    """Collects the nodes that somebody writes, which no graph has yet.

    Args:
        name: Names a node, and those of its outputs that have no name; the node comes after those
            in `nodes`.
    """

    def __init__(self, name: Callable[[ir.Node], None]) -> None:
        self.nodes: list[ir.Node] = []
        self._name = name

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        domain: str = "",
        output: ir.Value | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Write a node of one output and return that: `output`, or a new value."""
        outputs = 1 if output is None else [output]
        return self.ops(op_type, inputs, outputs, domain=domain, **attributes)[0]

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: int | Sequence[ir.Value],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Write a node and return its outputs: those given, or as many new values.

        Attributes that are None are left out.
        """
        node = ir.node(
            op_type,
            inputs,
            {name: value for name, value in attributes.items() if value is not None},
            domain=domain,
            outputs=[ir.Value() for _ in range(outputs)] if isinstance(outputs, int) else outputs,
        )
        self._name(node)
        self.nodes.append(node)
        return node.outputs

    def constant(self, array: Any, dtype: ir.DataType) -> ir.Value:
        """Return a constant of the shape of `array`."""
        values = np.asarray(array).astype(dtype.numpy())
        return self.op("Constant", value=ir.tensor(values, dtype=dtype))

    def ints(self, *numbers: int) -> ir.Value:
        """Return a constant int64 vector."""
        return self.constant(np.array(numbers, dtype=np.int64), ir.DataType.INT64)


class SharingTape(Tape):
    """A tape on which equal constants are written once.

    Args:
        name: As `Tape` takes it.
    """

    def __init__(self, name: Callable[[ir.Node], None]) -> None:
        super().__init__(name)
        self._constants: dict[tuple[Any, ...], ir.Value] = {}

    def constant(self, array: Any, dtype: ir.DataType) -> ir.Value:
        """Return a constant of the shape of `array`; equal ones are written once."""
        values = np.asarray(array).astype(dtype.numpy())
        key = (dtype, values.shape, values.tobytes())
        if key not in self._constants:
            self._constants[key] = super().constant(values, dtype)
        return self._constants[key]
