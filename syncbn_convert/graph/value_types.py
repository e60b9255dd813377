"""Element types and shapes that a model leaves open, by ONNX's inference."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx.shape_inference
import onnx_ir as ir

from syncbn_convert.graph.light_proto import light_proto


def inferred_types(model: ir.Model, values: Iterable[ir.Value | None]) -> dict[str, ir.DataType]:
    """Return the inferred element types of values, if one of `values` has none."""
    if all(value is not None and value.dtype is not None for value in values):
        return {}
    return {
        info.name: ir.DataType(info.type.tensor_type.elem_type)
        for info in inferred_infos(model)
        if info.type.tensor_type.elem_type
    }


def infer_shapes_of(model: ir.Model, values: Iterable[ir.Value | None]) -> bool:
    """Give those of `values` that have no shape the one that is inferred; return whether any did.

    Nothing else in the model changes.
    """
    unknown = {str(value.name): value for value in values if value is not None and not value.shape}
    if not unknown:
        return False
    found = False
    for info in inferred_infos(model):
        value = unknown.get(info.name)
        if value is not None and info.type.tensor_type.HasField("shape"):
            given = ir.serde.deserialize_value_info_proto(info, None)
            value.shape, value.type = given.shape, given.type
            found = True
    return found


def inferred_infos(model: ir.Model) -> list[onnx.ValueInfoProto]:
    """Return what ONNX's inference says of the main graph's values, without their weights."""
    return list(onnx.shape_inference.infer_shapes(light_proto(model)).graph.value_info)
