"""Element types and shapes of every value that gradients may flow through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import onnx
import onnx.shape_inference
import onnx_ir as ir

from syncbn_convert.form import training_form
from syncbn_convert.graph.light_proto import light_proto


@contextmanager
def known_types(model: ir.Model) -> Iterator[Callable[[], None]]:
    """Give values of the main graph the types and shapes that inference finds, for a while.

    They stay if the function that is yielded was called, else they are taken back at the end.
    """
    values = {
        str(value.name): value for node in model.graph for value in node.outputs if value.name
    }
    before: list[tuple[ir.Value, ir.TypeProtocol | None, ir.Shape | None]] = []
    kept = False

    def keep() -> None:
        nonlocal kept
        kept = True

    for info in _inferred(model):
        value = values.get(info.name)
        if value is None:
            continue
        found = ir.serde.deserialize_value_info_proto(info, None)
        if value.dtype is None or _is_better(found.shape, value.shape):
            before.append((value, value.type, value.shape))
            value.type, value.shape = found.type, found.shape
    try:
        yield keep
    finally:
        if not kept:
            for value, type_, shape in reversed(before):
                value.type, value.shape = type_, shape


def _is_better(found: ir.Shape | None, known: ir.Shape | None) -> bool:
    if found is None or known is None:
        return known is None and found is not None
    return _count_known(found) > _count_known(known)


def _count_known(shape: ir.Shape) -> int:
    return sum(isinstance(size, int) for size in shape)


def _inferred(model: ir.Model) -> list[onnx.ValueInfoProto]:
    """Infer with the `syncbn` operators spelled as what keeps their types: Identity."""
    proto = light_proto(model)
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        nodes.extend(_identities(node) if node.domain == training_form.DOMAIN else [node])
    plain = onnx.GraphProto()
    plain.CopyFrom(proto.graph)
    del plain.node[:]
    plain.node.extend(nodes)
    proto.graph.CopyFrom(plain)
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    return [*inferred.graph.value_info, *inferred.graph.output]


_SAME_AS = {
    training_form.OP_TYPE: {0: 0, 1: 3, 2: 4},
    training_form.ALL_REDUCE: {0: 0},
}
"""Which input an output has the type and shape of, by operator."""


def _identities(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    return [
        onnx.helper.make_node("Identity", [node.input[source]], [node.output[index]])
        for index, source in _SAME_AS.get(node.op_type, {}).items()
        if index < len(node.output) and node.output[index]
    ]
