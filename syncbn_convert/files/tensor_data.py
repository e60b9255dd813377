"""Whether the data of a tensor is what its dims and type say, before anything reads it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

_Type = onnx.TensorProto
_PLAIN_SIZES: dict[int, int] = {_Type.FLOAT: 4, _Type.INT64: 8}
_FIELDS: dict[str, dict[int, int]] = {
    "float_data": {_Type.FLOAT: 1, _Type.COMPLEX64: 2},
    "double_data": {_Type.DOUBLE: 1, _Type.COMPLEX128: 2},
    "int64_data": {_Type.INT64: 1},
    "uint64_data": {_Type.UINT32: 1, _Type.UINT64: 1},
    "string_data": {_Type.STRING: 1},
}
"""Entries of an element by type; other types have one in `int32_data`, narrow ones packed."""
_TYPED = (*_FIELDS, "int32_data")
_MOST_AXES = 64
"""That NumPy has."""
_LARGEST = 1 << 62
"""Bytes that no memory has."""


def tensor_fault(
    proto: onnx.TensorProto | onnx.SparseTensorProto, folders: Sequence[Path], inside: str | None
) -> str:
    """Return cause and cure of what makes a tensor unreadable; empty if nothing does.

    Args:
        proto: The tensor.
        folders: Where its external data should be; a link there may lead into the others, too.
        inside: Location of data that is in the model's own file.
    """
    if isinstance(proto, onnx.SparseTensorProto):
        return "sparse tensors are not supported; make it dense"
    if _is_plain(proto):
        return ""
    if fault := _dims_fault(proto):
        return f"{fault}; export the model again"
    try:
        tensor = ir.serde.deserialize_tensor(proto, folders[0])
        nbytes = 0 if proto.data_type == _Type.STRING else tensor.nbytes
    except (ir.serde.SerdeError, TypeError, ValueError) as error:
        return f"cannot be read: {root_cause(error)}; export the model again"
    if not isinstance(tensor, ir.ExternalTensor):
        return _held_fault(proto, nbytes)
    if os.fspath(tensor.location) != inside:
        return external_fault(tensor, folders[1:])
    held = nbytes if tensor.length is None else tensor.length
    return _raw_fault(proto, held, nbytes) or _extent_fault(tensor)


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
    if "\0" in os.fspath(tensor.location):
        return "its external data has a name that no file has; export the model again"
    if tensor.base_dir and (fault := _location_fault(tensor, others)):
        return fault
    if not os.path.isfile(tensor.path):
        return (
            f"external data file {os.fspath(tensor.location)!r} is missing; "
            "put it beside the model, or load the model by its path"
        )
    return _extent_fault(tensor)


def _is_plain(proto: onnx.TensorProto) -> bool:
    """Whether a tensor is as most are, and whole; quick, as a model may have very many."""
    size = _PLAIN_SIZES.get(proto.data_type)
    if size is None or proto.data_location != _Type.DEFAULT:
        return False
    dims = proto.dims
    count = math.prod(dims)
    return (
        count > 0
        and len(proto.raw_data) == size * count
        and len(dims) <= _MOST_AXES
        and min(dims, default=0) >= 0
        and not proto.HasField("segment")
        and not (proto.float_data or proto.int64_data or proto.int32_data or proto.double_data)
        and not (proto.string_data or proto.uint64_data)
    )


def _dims_fault(proto: onnx.TensorProto) -> str:
    dims = proto.dims
    if min(dims, default=0) < 0:
        return f"has the negative size {min(dims)}"
    if len(dims) > _MOST_AXES:
        return f"has {len(dims)} axes, and arrays have up to {_MOST_AXES}"
    if math.prod(size for size in dims if size) * 16 >= _LARGEST:
        return f"has dims {list(dims)}, which no memory holds"
    if proto.HasField("segment"):
        return "is in segments, which are not supported"
    return ""


def _held_fault(proto: onnx.TensorProto, nbytes: int) -> str:
    """Return what is wrong with data inside the model."""
    if proto.HasField("raw_data"):
        return _raw_fault(proto, len(proto.raw_data), nbytes)
    filled = [name for name in _TYPED if len(getattr(proto, name))]
    field = next((n for n, types in _FIELDS.items() if proto.data_type in types), "int32_data")
    if [name for name in filled if name != field]:
        return f"has its data in {filled[0]}, which is not for its type; export the model again"
    count = math.prod(proto.dims)
    wanted = count * _FIELDS.get(field, {}).get(proto.data_type, 1)
    if field == "int32_data":
        wanted = min(count, nbytes)
    held = len(getattr(proto, field))
    if held != wanted:
        return (
            f"holds {held} numbers, but its dims and type need {wanted}; "
            "export or download the model again"
        )
    return ""


def _raw_fault(proto: onnx.TensorProto, held: int, nbytes: int) -> str:
    if held != nbytes:
        return (
            f"holds {held} bytes, but its dims and type need {nbytes}; "
            "export or download the model again"
        )
    if proto.data_type == _Type.STRING or any(len(getattr(proto, name)) for name in _TYPED):
        return "has its data twice, or as bytes where text belongs; export the model again"
    return ""


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
