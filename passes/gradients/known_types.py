"""Element types and shapes of every value that gradients may flow through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import onnx
import onnx.shape_inference
import onnx_ir as ir

from syncbn_convert.form import training_form
from syncbn_convert.graph import constants
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

    for _ in range(_ROUNDS):
        learnt = False
        for info in _inferred(model):
            value = values.get(info.name)
            if value is None:
                continue
            found = ir.serde.deserialize_value_info_proto(info, None)
            if value.dtype is None or _is_better(found.shape, value.shape):
                before.append((value, value.type, value.shape))
                value.type, value.shape = found.type, found.shape
                learnt = True
        if not learnt or all(value.shape is not None for value in values.values()):
            break
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
    known = _known_sizes(model)
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        if len(node.output) == 1 and node.output[0] in known:
            nodes.append(_constant(node.output[0], known[node.output[0]]))
        else:
            nodes.extend(_identities(node) if node.domain == training_form.DOMAIN else [node])
    plain = onnx.GraphProto()
    plain.CopyFrom(proto.graph)
    del plain.node[:]
    plain.node.extend(nodes)
    proto.graph.CopyFrom(plain)
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    return [*inferred.graph.value_info, *inferred.graph.output]


_ROUNDS = 4
"""Shapes that are known let sizes be computed, and these let further shapes be known."""
_READING_SIZES = (
    "ConstantOfShape",
    "Expand",
    "Gather",
    "Pad",
    "Range",
    "Reshape",
    "Resize",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Unsqueeze",
)
_MOST_SIZES = 64


def _known_sizes(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Return whole numbers that operators compute for others to take as sizes, axes or places."""
    found: dict[str, ir.TensorProtocol] = {}
    for node in model.graph:
        if node.op_type not in _READING_SIZES:
            continue
        for value in node.inputs[1:] if len(node.inputs) > 1 else node.inputs:
            maker = None if value is None else value.producer()
            if value is None or maker is None or maker.op_type == "Constant":
                continue
            tensor = constants.constant_tensor(value, model)
            if tensor is not None and tensor.dtype.is_integer() and tensor.size <= _MOST_SIZES:
                found[str(value.name)] = tensor
    return found


def _constant(name: str, tensor: ir.TensorProtocol) -> onnx.NodeProto:
    value = onnx.numpy_helper.from_array(tensor.numpy(), name)
    return onnx.helper.make_node("Constant", [], [name], value=value)


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
