"""What a model-local function computes, for comparing functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx_ir as ir


def described(function: ir.Function) -> Any:
    """Return what a function computes, whatever its values are called and who serialized it."""
    numbers: dict[ir.Value | None, int] = {None: -1}

    def numbered(values: Iterable[ir.Value | None]) -> tuple[int, ...]:
        return tuple(numbers.setdefault(value, len(numbers)) for value in values)

    inputs = numbered(function.inputs)
    nodes = [
        (
            node.domain,
            node.op_type,
            numbered(node.inputs),
            numbered(node.outputs),
            _attributes(node),
        )
        for node in function
    ]
    defaults = _attributes(function)
    return inputs, nodes, numbered(function.outputs), defaults


def _attributes(holder: ir.Node | ir.Function) -> tuple[Any, ...]:
    found = []
    for name, attribute in sorted(holder.attributes.items()):
        value: Any = attribute.value
        if attribute.is_ref():
            value = attribute.ref_attr_name
        elif attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            value = (int(tensor.dtype), tuple(tensor.shape.numpy()), tensor.tobytes())
        elif attribute.type not in (ir.AttributeType.FLOAT, ir.AttributeType.INT):
            value = str(value)
        found.append((name, int(attribute.type), attribute.is_ref(), value))
    return tuple(found)
