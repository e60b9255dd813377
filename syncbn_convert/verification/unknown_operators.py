"""Which operators ONNX Runtime knows."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

_SHOWN = 3


def names(model: ir.Model) -> str:
    """Return the operators of a model that ONNX Runtime does not know, quoted; empty if none.

    In the default domain it has schemas of plugins, too, and no kernels for them.
    """
    schemas = {(schema.domain, schema.name) for schema in get_all_operator_schema()}
    known = {key for key in schemas if key[0] or onnx.defs.has(key[1])}
    known |= {(domain, name) for domain, name, _ in model.functions}
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    found = dict.fromkeys(
        f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        for body in bodies
        for node in body.all_nodes()
        if (node.domain, node.op_type) not in known
    )
    shown = ", ".join(f"'{name}'" for name in list(found)[:_SHOWN])
    return shown + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
