"""Types with maps in them, such as ZipMap's, which onnx_ir does not hold: kept beside the model."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

_KEY = "syncbn_convert.map_types"


def set_aside(proto: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """Take the types that hold maps out of a model; return them by the names of their values."""
    found: dict[str, onnx.TypeProto] = {}
    for info in _infos(proto.graph):
        if holds_map(info.type):
            found[info.name] = onnx.TypeProto.FromString(info.type.SerializeToString())
            info.ClearField("type")
    return found


def keep(model: ir.Model, types: dict[str, onnx.TypeProto]) -> None:
    """Let a model know types that were set aside."""
    if types:
        model.meta[_KEY] = types


def of(model: ir.Model) -> dict[str, onnx.TypeProto]:
    """Return the types that were set aside, by names of values."""
    types: dict[str, onnx.TypeProto] = model.meta.get(_KEY, {})
    return types


def put_back(proto: onnx.ModelProto, model: ir.Model) -> None:
    """Give the values of a serialized model the types that were set aside."""
    types = of(model)
    for info in _infos(proto.graph) if types else ():
        if info.name in types and not info.HasField("type"):
            info.type.CopyFrom(types[info.name])


def _infos(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from (*graph.input, *graph.output, *graph.value_info)


def holds_map(kind: onnx.TypeProto) -> bool:
    """Whether a type has a map in it."""
    if kind.HasField("sequence_type"):
        return holds_map(kind.sequence_type.elem_type)
    if kind.HasField("optional_type"):
        return holds_map(kind.optional_type.elem_type)
    return bool(kind.HasField("map_type"))
