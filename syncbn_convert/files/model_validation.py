"""What makes a model file unreadable, found before anything is made of it, with cause and cure."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import Message  # type: ignore[import-untyped]

from syncbn_convert.errors import ModelFileError

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
        if fault := _tensor_fault(tensor, folders, inside):
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
    else:
        copy_without_data(source, target, location)


def _is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def _tensor_fault(
    proto: onnx.TensorProto | onnx.SparseTensorProto, folders: Sequence[Path], inside: str | None
) -> str:
    """Return cause and cure of what makes a tensor unreadable; empty if nothing does."""
    if isinstance(proto, onnx.SparseTensorProto):
        return "sparse tensors are not supported; make it dense"
    if _is_plain(proto):
        return ""
    try:
        tensor = ir.serde.deserialize_tensor(proto, folders[0])
        nbytes = tensor.nbytes
    except (ir.serde.SerdeError, TypeError, ValueError) as error:
        return f"cannot be read: {root_cause(error)}; export the model again"
    held = len(proto.raw_data) if proto.HasField("raw_data") else nbytes
    if isinstance(tensor, ir.ExternalTensor):
        if os.fspath(tensor.location) != inside:
            return external_fault(tensor, folders[1:])
        held = nbytes if tensor.length is None else tensor.length
    if held != nbytes:
        return (
            f"holds {held} bytes, but its dims and type need {nbytes}; "
            "export or download the model again"
        )
    return _extent_fault(tensor) if isinstance(tensor, ir.ExternalTensor) else ""


_PLAIN_SIZES: dict[int, int] = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.INT64: 8}


def _is_plain(proto: onnx.TensorProto) -> bool:
    """Whether a tensor is as most are, and whole; quick, as a model may have very many."""
    size = _PLAIN_SIZES.get(proto.data_type)
    return (
        size is not None
        and proto.data_location == onnx.TensorProto.DEFAULT
        and not proto.float_data
        and not proto.int64_data
        and min(proto.dims, default=0) >= 0
        and len(proto.raw_data) == size * math.prod(proto.dims)
    )


def root_cause(error: BaseException) -> str:
    """Return in one line what the first error of a chain says."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


def external_fault(tensor: ir.ExternalTensor, others: Sequence[Path] = ()) -> str:
    """Return cause and cure of what makes external data unreadable; empty if nothing does.

    Args:
        tensor: What has its data in a file.
        others: Folders into which a link in the tensor's own folder may lead.
    """
    if tensor.base_dir and (fault := _location_fault(tensor, others)):
        return fault
    if not os.path.isfile(tensor.path):
        return (
            f"external data file {os.fspath(tensor.location)!r} is missing; "
            "put it beside the model, or load the model by its path"
        )
    return _extent_fault(tensor)


def _location_fault(tensor: ir.ExternalTensor, others: Sequence[Path]) -> str:
    location, folder = Path(tensor.location), os.path.realpath(tensor.base_dir)
    what = f"external data file {os.fspath(tensor.location)!r}"
    holder, target = (Path(os.path.realpath(p)) for p in (Path(tensor.path).parent, tensor.path))
    inside = target.is_relative_to(folder) or (
        holder.is_relative_to(folder)
        and any(target.is_relative_to(os.path.realpath(other)) for other in others)
    )
    if location.is_absolute() or ".." in location.parts or not inside:
        return f"{what} is outside the model's folder; save the model with its data beside it"
    if target.is_file() and target.stat().st_nlink > 1:
        return f"{what} is a hard link, which may be any file; put a copy in its place"
    return ""


def _extent_fault(tensor: ir.ExternalTensor) -> str:
    length = tensor.nbytes if tensor.length is None else tensor.length
    if length != tensor.nbytes:
        return (
            f"external data has length {length}, but its dims and type need {tensor.nbytes} bytes; "
            "export the model again"
        )
    start, size = tensor.offset or 0, os.path.getsize(tensor.path)
    if start < 0 or start + length > size:
        return (
            f"external data is at bytes {start} to {start + length} of "
            f"{os.fspath(tensor.location)!r}, which has {size}; copy or download that file again"
        )
    return ""
