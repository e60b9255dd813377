"""Element types and shapes that a model leaves open, by ONNX's inference."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator

import onnx
import onnx.shape_inference
import onnx_ir as ir

from syncbn_convert.errors import ConversionError, first_line
from syncbn_convert.graph import graphs
from syncbn_convert.graph.light_proto import light_proto
from syncbn_convert.graph.map_types import holds_map

logger = logging.getLogger(__name__)


def inferred_types(
    model: ir.Model, values: Iterable[ir.Value | None]
) -> dict[ir.Value, ir.DataType]:
    """Return the inferred element types of all values, if one of `values` has none."""
    if all(value is not None and value.dtype is not None for value in values):
        return {}
    return {
        value: given.dtype for value, given in inferred(model).items() if given.dtype is not None
    }


def infer_shapes_of(model: ir.Model, values: Iterable[ir.Value | None]) -> bool:
    """Give those of `values` that have no shape the one that is inferred; return whether any did.

    Nothing else in the model changes.
    """
    unknown = [value for value in values if value is not None and not value.shape]
    if not unknown:
        return False
    found = False
    known = inferred(model)
    for value in unknown:
        given = known.get(value)
        if given is not None and given.shape is not None:
            value.shape, value.type = given.shape, given.type
            found = True
    return found


@contextlib.contextmanager
def stated(model: ir.Model, *, everywhere: bool = False) -> Iterator[dict[ir.Value, ir.Value]]:
    """Let values have the type and shape that are inferred meanwhile.

    Args:
        model: Whose values they are.
        everywhere: Whether to look at all values that nodes make; otherwise at those that Shape,
            CastLike and the like read.

    Yields:
        What was inferred, of all values; nothing if nothing had to be.
    """
    asked = _made(model) if everywhere else _asked_for_types(model)
    unknown = [value for value in asked if value.dtype is None or value.shape is None]
    known = inferred(model) if unknown else {}
    given = [value for value in unknown if value in known]
    before = [(value.type, value.shape) for value in given]
    for value in given:
        value.type = value.type or known[value].type
        value.shape = known[value].shape if value.shape is None else value.shape
    try:
        yield known
    finally:
        for value, (old_type, old_shape) in zip(given, before, strict=True):
            value.type, value.shape = old_type, old_shape


def _made(model: ir.Model) -> list[ir.Value]:
    return [value for node, _, _ in graphs.walk(model) for value in node.outputs]


def _asked_for_types(model: ir.Model) -> list[ir.Value]:
    asked = {
        node.inputs[use]: None
        for node, _, _ in graphs.walk(model)
        for use in range(len(node.inputs))
        if graphs.reads_type_only(node, use)
    }
    return [value for value in asked if value is not None]


def inferred(model: ir.Model) -> dict[ir.Value, ir.Value]:
    """Return what ONNX's inference says of values, each as a value of that type and shape.

    They are those of the main graph and of bodies; of functions nothing is known.

    Raises:
        ConversionError: if the model contradicts itself.
    """
    try:
        proto = onnx.shape_inference.infer_shapes(light_proto(model)).graph
    except onnx.shape_inference.InferenceError as error:
        raise ConversionError(
            f"model '{model.graph.name}': not a valid ONNX model: {first_line(error)}; correct or "
            "export it again"
        ) from error
    return dict(_inferred_in(model.graph, proto))


def _inferred_in(graph: ir.Graph, proto: onnx.GraphProto) -> Iterator[tuple[ir.Value, ir.Value]]:
    infos = {
        info.name: info
        for info in (*proto.value_info, *proto.output)
        if info.type.WhichOneof("value") and not holds_map(info.type)
    }
    for node, node_proto in zip(graph, proto.node, strict=True):
        for value in node.outputs:
            if value.name in infos:
                yield value, ir.serde.deserialize_value_info_proto(infos[value.name], None)
        attributes = {attribute.name: attribute for attribute in node_proto.attribute}
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _inferred_in(attribute.as_graph(), attributes[attribute.name].g)
            elif attribute.type == ir.AttributeType.GRAPHS:
                bodies = zip(attribute.as_graphs(), attributes[attribute.name].graphs, strict=True)
                for body, body_proto in bodies:
                    yield from _inferred_in(body, body_proto)


def forget_undefined_types(model: ir.Model) -> None:
    """Let values whose element type is written as UNDEFINED have none, as those without a type."""
    for node, _, _ in graphs.walk(model):
        inner = [value for _, body in graphs.bodies(node) for value in body.inputs]
        for value in (*node.outputs, *inner):
            if value.dtype == ir.DataType.UNDEFINED:
                value.type = None
