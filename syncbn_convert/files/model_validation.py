"""What makes a model file unreadable, found before anything is made of it, with cause and cure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import Message  # type: ignore[import-untyped]

from syncbn_convert.errors import ModelFileError
from syncbn_convert.files.tensor_data import tensor_fault

_MAX_ELEMENTS_COPIED = 1024
_TENSOR_HOLDERS = frozenset(
    {
        "ModelProto",
        "GraphProto",
        "NodeProto",
        "AttributeProto",
        "FunctionProto",
        "TrainingInfoProto",
        "TensorProto",
        "SparseTensorProto",
    }
)


def truncated(source: str, cause: str) -> str:
    """Return the message for a file that holds no whole model."""
    return f"{source}: not an ONNX model, or cut off: {cause}; export or download it again"


def validate(
    proto: onnx.ModelProto, source: str, folders: Sequence[Path], inside: str | None = None
) -> None:
    """Check that the model is whole and the data of each of its tensors is there.

    Args:
        proto: The model as parsed.
        source: What to call the model in messages.
        folders: Where its external data should be; a link there may lead into the others, too.
        inside: Location of data that is in the model's own file.

    Raises:
        ModelFileError: If something is missing or not supported.
    """
    for field in ("ir_version", "graph"):
        if not proto.HasField(field):
            raise ModelFileError(truncated(source, f"it has no {field}"))
    if not proto.opset_import:
        raise ModelFileError(truncated(source, "it has no opset_import"))
    for name, tensor in _tensor_protos(proto):
        if fault := tensor_fault(tensor, folders, inside):
            raise ModelFileError(f"{source}: tensor {name!r}: {fault}")
    for entry in proto.training_info:
        for name, tensor in _tensor_protos(entry):
            if isinstance(tensor, onnx.TensorProto) and _is_external(tensor):
                raise ModelFileError(
                    f"{source}: tensor {name!r} of training_info has external data, which is not "
                    "supported; save the model with that tensor inside"
                )


def _tensor_protos(
    message: Message, owner: str = ""
) -> Iterator[tuple[str, onnx.TensorProto | onnx.SparseTensorProto]]:
    """Yield every tensor under the message, with its name or that of the node that holds it."""
    if isinstance(message, onnx.NodeProto):
        owner = message.name or ",".join(map(str, message.output))
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.name not in _TENSOR_HOLDERS:
            continue
        for child in (value,) if isinstance(value, Message) else value:
            if isinstance(child, onnx.TensorProto):
                yield child.name or owner, child
            elif isinstance(child, onnx.SparseTensorProto):
                yield child.values.name or owner, child
            else:
                yield from _tensor_protos(child, owner)


def copy_without_data(source: Message, target: Message, location: str) -> None:
    """Copy a message; the data of its big and external tensors is said to be in file `location`.

    Raises:
        ValueError: If a text field is not UTF-8.
    """
    for field, value in source.ListFields():
        if field.message_type is None or field.message_type.name not in _TENSOR_HOLDERS:
            _copy_field(field.name, value, target)
        elif isinstance(value, Message):
            _copy_child(value, getattr(target, field.name), location)
        else:
            for child in value:
                _copy_child(child, getattr(target, field.name).add(), location)


def _copy_field(name: str, value: object, target: Message) -> None:
    if isinstance(value, int | float | str | bytes):
        setattr(target, name, value)
    elif isinstance(value, Message):
        getattr(target, name).CopyFrom(value)
    else:
        getattr(target, name).extend(value)


def _copy_child(source: Message, target: Message, location: str) -> None:
    target.SetInParent()
    if isinstance(source, onnx.TensorProto) and (
        _is_external(source) or math.prod(source.dims) > _MAX_ELEMENTS_COPIED
    ):
        target.name, target.data_type = source.name, source.data_type
        target.doc_string = source.doc_string
        target.dims.extend(source.dims)
        target.data_location = onnx.TensorProto.EXTERNAL
        target.external_data.add(key="location", value=location)
        target.metadata_props.extend(source.metadata_props)
    else:
        copy_without_data(source, target, location)


def _is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL
