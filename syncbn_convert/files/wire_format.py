"""Model files at the level of protobuf's wire format, so that big weights need not pass memory.

The rules are those of https://protobuf.dev/programming-guides/encoding, the field numbers those of
`onnx.proto`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

WITHHELD_BYTES = 4096
"""Size of raw data from which it stays in the file."""

_RELEASED_BYTES = 64 << 20
"""After so much the pages that were looked at are given back; the system maps many around each."""

_DONTNEED: int | None = getattr(mmap, "MADV_DONTNEED", None)

_MOST_FIELDS = 1 << 22
"""Of one message: each node is one of a graph."""
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_RAW_DATA = 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _Field(NamedTuple):
    number: int
    wire_type: int
    start: int
    payload: int
    end: int


def read_without_weights(path: str | os.PathLike[str]) -> bytes:
    """Return a serialized model whose big initializers are external data in its own file.

    Raises:
        DecodeError: if the file is cut off or no protobuf.
        OSError: if it cannot be read.
        ValueError: if it is empty.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _without_weights(data, os.path.basename(path))


def _without_weights(data: mmap.mmap, location: str) -> bytes:
    parts: list[bytes] = []
    copied = 0
    for field in _fields(data, 0, len(data)):
        if field.number == _MODEL_GRAPH and field.wire_type == _BYTES:
            graph = b"".join(_light_graph(data, field, location))
            parts += [data[copied : field.start], _key(_MODEL_GRAPH), _varint(len(graph)), graph]
            copied = field.end
    return b"".join([*parts, data[copied:]])


def pieces_with_weights(
    proto: onnx.ModelProto, weights: Mapping[str, ir.TensorProtocol]
) -> Iterator[bytes | ir.TensorProtocol]:
    """Yield what a serialized model consists of, with the data of some initializers.

    Args:
        proto: The model; its initializers named in `weights` have no data, and it has no others of
            these names. It is changed: the initializers are taken out.
        weights: What holds the data, by name; each is yielded where its bytes belong.
    """
    tensors = [(tensor.name, *_around_data(tensor, weights)) for tensor in proto.graph.initializer]
    del proto.graph.initializer[:]
    graph = _split(proto.graph, _GRAPH_INITIALIZER)
    proto.graph.Clear()
    model = _split(proto, _MODEL_GRAPH)
    size = sum(map(len, graph))
    heads: list[bytes] = []
    for name, before, after in tensors:
        length = len(before) + len(after) + (weights[name].nbytes if name in weights else 0)
        heads.append(_key(_GRAPH_INITIALIZER) + _varint(length) + before)
        size += len(heads[-1]) - len(before) + length
    ready = [model[0], _key(_MODEL_GRAPH), _varint(size), graph[0]]
    for head, (name, _, after) in zip(heads, tensors, strict=True):
        ready.append(head)
        if name in weights:
            yield b"".join(ready)
            yield weights[name]
            ready = []
        ready.append(after)
    yield b"".join([*ready, graph[1], model[1]])


def _around_data(
    tensor: onnx.TensorProto, weights: Mapping[str, ir.TensorProtocol]
) -> tuple[bytes, bytes]:
    """Return what stands before and after the raw data of a tensor."""
    if tensor.name not in weights:
        return tensor.SerializeToString(deterministic=True), b""
    tensor.ClearField("data_location")
    tensor.ClearField("external_data")
    before, after = _split(tensor, _TENSOR_RAW_DATA)
    return before + _key(_TENSOR_RAW_DATA) + _varint(weights[tensor.name].nbytes), after


def _split(message: Message, number: int) -> tuple[bytes, bytes]:
    """Return a message, serialized in the order of its fields, before and after a field."""
    content: bytes = message.SerializeToString(deterministic=True)
    fields = _fields(content, 0, len(content))
    before = next((field.start for field in fields if field.number >= number), len(content))
    fields = _fields(content, before, len(content))
    after = next((field.start for field in fields if field.number > number), len(content))
    return content[:before], content[after:]


def _light_graph(data: mmap.mmap, graph: _Field, location: str) -> Iterator[bytes]:
    copied = released = graph.payload
    for field in _fields(data, graph.payload, graph.end):
        if field.number != _GRAPH_INITIALIZER or field.end - field.payload < WITHHELD_BYTES:
            continue
        light = _light_tensor(data, field, location)
        if light is not None:
            yield data[copied : field.start]
            yield _key(_GRAPH_INITIALIZER) + _varint(len(light)) + light
            copied = field.end
        if _DONTNEED is not None and field.end - released > _RELEASED_BYTES:
            data.madvise(_DONTNEED)
            released = field.end
    yield data[copied : graph.end]


def _light_tensor(data: mmap.mmap, tensor: _Field, location: str) -> bytes | None:
    """Return a tensor whose raw data is said to be external; None where there is little of it."""
    fields = _fields(data, tensor.payload, tensor.end)
    raw = [field for field in fields if field.number == _TENSOR_RAW_DATA]
    if len(raw) != 1 or raw[0].end - raw[0].payload < WITHHELD_BYTES:
        return None
    rest = data[tensor.payload : raw[0].start] + data[raw[0].end : tensor.end]
    light = onnx.TensorProto.FromString(rest)
    if light.data_location == onnx.TensorProto.EXTERNAL:
        return None
    light.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (
        ("location", location),
        ("offset", raw[0].payload),
        ("length", raw[0].end - raw[0].payload),
    ):
        light.external_data.add(key=key, value=str(value))
    serialized: bytes = light.SerializeToString()
    return serialized


def _fields(data: mmap.mmap | bytes, start: int, end: int) -> Iterator[_Field]:
    """Yield the fields of the message in `data[start:end]`."""
    position = start
    count = 0
    while position < end:
        first = position
        key, position = _read_varint(data, position, end)
        wire_type = key & 7
        count += 1
        if not key >> 3 or count > _MOST_FIELDS:
            raise DecodeError(f"field {count} at byte {first}: there is none like it in a model")
        length, payload = 0, position
        if wire_type == _VARINT:
            _, position = _read_varint(data, position, end)
        elif wire_type == _BYTES:
            length, payload = _read_varint(data, position, end)
            position = payload + length
        elif wire_type in (_FIXED32, _FIXED64):
            position += 4 if wire_type == _FIXED32 else 8
        else:
            raise DecodeError(f"wire type {wire_type} at byte {first}")
        if position > end:
            raise DecodeError(f"the field at byte {first} ends behind its message")
        yield _Field(key >> 3, wire_type, first, payload, position)


def _read_varint(data: mmap.mmap | bytes, position: int, end: int) -> tuple[int, int]:
    result = shift = 0
    while position < end and shift < 64:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
    raise DecodeError(f"a number at byte {position} is cut off")


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _key(number: int) -> bytes:
    return _varint(number << 3 | _BYTES)
