"""What a model may be made of: text, references, functions and operators, checked where it is read.

Each check goes over the model once.
"""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Iterator
from typing import Any

import onnx
from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from syncbn_convert.errors import ModelFileError

_Body = onnx.GraphProto | onnx.FunctionProto
_EXTENSIONS = frozenset(["ai.onnx.contrib", "com.microsoft.extensions"])
_REACHING_OUT = re.compile(
    r"Azure\w*|OpenAI\w*|Triton\w*|ImageReader|LoadModel|Py\w+|\w*(File|Http|Url|Download|Path)\w*"
)
_FIRST_IR_WITH_DEVICES = 11
_MOST_EXPANDED = 1_000_000
"""Nodes of a model whose functions are written out."""
_STRICT = "syncbn_convert.strict"


def require_text(light: onnx.ModelProto, source: str) -> None:
    """Refuse a model one of whose names or texts is not UTF-8, as protobuf 2 lets them be.

    Args:
        light: The model, without data.
        source: What to call it in messages.

    Raises:
        ModelFileError: naming the field.
    """
    try:
        _strict_model().FromString(light.SerializeToString())
    except DecodeError as error:
        raise ModelFileError(
            f"{source}: not a valid ONNX model: {_bad_text(light)} is not UTF-8; correct or export "
            "the model again"
        ) from error


def require_sound(proto: onnx.ModelProto, source: str) -> None:
    """Refuse a model that refers to what is not there, grows without bound, or reaches out.

    Raises:
        ModelFileError: naming node, input or function.
    """
    for find in (_input_fault, _node_fault, _growth_fault, _string_fault):
        if fault := find(proto):
            raise ModelFileError(f"{source}: {fault}; correct or export the model again")


@functools.cache
def _strict_model() -> Any:
    """Return the class of a model whose text has to be UTF-8: ONNX's, read as protobuf 3."""
    file = descriptor_pb2.FileDescriptorProto()
    onnx.ModelProto.DESCRIPTOR.file.CopyToProto(file)
    file.syntax, file.package, file.name = "proto3", _STRICT, "strict.proto"
    pending = list(file.message_type)
    while pending:
        message = pending.pop()
        pending += message.nested_type
        for field in message.field:
            field.ClearField("default_value")
            if field.type_name:
                field.type_name = field.type_name.replace(".onnx.", f".{_STRICT}.", 1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_STRICT}.ModelProto"))


def _bad_text(message: Message, place: str = "model") -> str:
    """Return where the first text is that is not UTF-8."""
    for field in message.DESCRIPTOR.fields:
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        if not (field.is_repeated or message.HasField(field.name)):
            continue
        here = f"{place}.{field.name}"
        try:
            value = getattr(message, field.name)
            values = list(value) if field.is_repeated else [value]
        except ValueError:  # what protobuf raises for such text
            return here
        for number, child in enumerate(values):
            if isinstance(child, Message) and (found := _bad_text(child, f"{here}[{number}]")):
                return found
            if isinstance(child, bytes):
                return here
    return ""


def _input_fault(proto: onnx.ModelProto) -> str:
    for info in proto.graph.input:
        kind = info.type
        if kind.HasField("tensor_type") and kind.tensor_type.elem_type == 0:
            return f"input '{info.name}' has no element type"
    return ""


def _node_fault(proto: onnx.ModelProto) -> str:
    parts: list[tuple[_Body, bool]] = [(proto.graph, False)]
    parts += [(function, True) for function in proto.functions]
    parts += [(entry.algorithm, False) for entry in proto.training_info]
    parts += [(entry.initialization, False) for entry in proto.training_info]
    known = {device.name for device in proto.configuration if device.name}
    for body, is_function in parts:
        for node in _nodes(body):
            if node.domain in _EXTENSIONS and _REACHING_OUT.fullmatch(node.op_type):
                return (
                    f"operator {node.domain}::{node.op_type} of {_label(node)} reads files or the "
                    "network, and is not run"
                )
            for device in node.device_configurations:
                if (
                    proto.ir_version < _FIRST_IR_WITH_DEVICES
                    or device.configuration_id not in known
                ):
                    return (
                        f"device configuration '{device.configuration_id}' of {_label(node)} is "
                        "none of the model"
                    )
            for attribute in node.attribute:
                if attribute.ref_attr_name and not is_function:
                    return (
                        f"attribute '{attribute.name}' of {_label(node)} refers to the attribute "
                        f"'{attribute.ref_attr_name}' of a function, and is in none"
                    )
                if not _is_text(attribute):
                    return f"attribute '{attribute.name}' of {_label(node)} is not UTF-8"
    return ""


def _is_text(attribute: onnx.AttributeProto) -> bool:
    try:
        for text in (attribute.s, *attribute.strings):
            text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _nodes(body: _Body) -> Iterator[onnx.NodeProto]:
    pending: list[Any] = [body]
    while pending:
        for node in pending.pop().node:
            yield node
            pending += _graphs(node)


def _growth_fault(proto: onnx.ModelProto) -> str:
    """Return what is wrong with the number of nodes that functions stand for."""
    calls = {
        (f.domain, f.name): collections.Counter((n.domain, n.op_type) for n in _nodes(f))
        for f in proto.functions
    }
    sizes: dict[tuple[str, str], int] = {}
    opened: set[tuple[str, str]] = set()
    pending = list(calls)
    while pending:
        name = pending[-1]
        missing = [call for call in calls[name] if call in calls and call not in sizes]
        if name in sizes:
            pending.pop()
        elif not missing:
            inner = sum(sizes.get(call, 0) * count for call, count in calls[name].items())
            sizes[name] = min(calls[name].total() + inner, 2 * _MOST_EXPANDED)
            pending.pop()
        elif name in opened:
            return f"function '{name[0]}::{name[1]}' calls itself"
        else:
            opened.add(name)
            pending += missing
    total = sum(sizes.get((node.domain, node.op_type), 0) for node in _nodes(proto.graph))
    if max((total, *sizes.values())) > _MOST_EXPANDED:
        return f"its functions stand for more than {_MOST_EXPANDED} nodes"
    return ""


def _string_fault(proto: onnx.ModelProto) -> str:
    """Return which node reads text where its operator wants numbers."""
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    texts = set(_texts(proto.graph))
    for node in _nodes(proto.graph) if texts else ():
        if texts.isdisjoint(node.input):
            continue
        for index, name in enumerate(node.input):
            if name in texts and not _takes_text(node, index, opsets):
                return f"{_label(node)} reads '{name}', which is text, where numbers belong"
    return ""


def _texts(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names of constants that are text; what shares one of these names counts, too."""
    for body in (graph, *(g for node in _nodes(graph) for g in _graphs(node))):
        for tensor in body.initializer:
            if tensor.data_type == onnx.TensorProto.STRING:
                yield tensor.name
    for node in _nodes(graph):
        if node.op_type in ("Constant", "ConstantOfShape"):
            for attribute in node.attribute:
                held = attribute.t.data_type == onnx.TensorProto.STRING
                if held or attribute.name in ("value_string", "value_strings"):
                    yield from node.output


def _graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _takes_text(node: onnx.NodeProto, index: int, opsets: dict[str, int]) -> bool:
    version = opsets.get(node.domain, 0)
    if not onnx.defs.has(node.op_type, version, node.domain):
        return True
    formals = onnx.defs.get_schema(node.op_type, version, node.domain).inputs
    if not formals:
        return True
    return "tensor(string)" in formals[min(index, len(formals) - 1)].types


def _label(node: onnx.NodeProto) -> str:
    return f"node '{node.name or ','.join(node.output)}'"
