"""Reading, checking and writing ONNX model files; weights stay on disk until they are used."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from syncbn_convert import training_info
from syncbn_convert.errors import ConversionError, ModelFileError
from syncbn_convert.model_validation import (
    copy_without_data,
    external_fault,
    root_cause,
    truncated,
    validate,
)
from syncbn_convert.staging import data_file

_CHECKER_ERRORS = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError)

ModelLike = str | os.PathLike[str] | onnx.ModelProto | ir.Model

_EXTERNAL_THRESHOLD = 1024
_MAX_INLINE_BYTES = 2_000_000_000  # protobuf ends at 2**31 - 1; the rest is for the graph


def load_model(path: str | os.PathLike[str]) -> ir.Model:
    """Read and check a model file; external data is checked, not read.

    Args:
        path: A protobuf `.onnx` file.

    Returns:
        The model, with its `training_info` (see `syncbn_convert.training_info`).

    Raises:
        ModelFileError: If the file cannot be read, is no valid ONNX model, or its external data is
            missing, cut off or outside its folder.
    """
    source = os.fspath(path)
    proto = _parse(source)
    folder = Path(path).absolute().parent
    return _deserialize(proto, source, folder)


def as_model(model: ModelLike) -> ir.Model:
    """Return a model that can be changed without changing the argument.

    Args:
        model: A path, a protobuf, or an `onnx_ir.Model`, whose weights are shared, not copied.
            External data of a protobuf is looked for in the working directory.

    Raises:
        ModelFileError: If the argument cannot be read or is no valid model, as for `load_model`.
    """
    if isinstance(model, ir.Model):
        return _independent(model)
    if isinstance(model, onnx.ModelProto):
        own = onnx.ModelProto()
        own.CopyFrom(model)
        return _deserialize(own, f"model {model.graph.name!r}", Path.cwd())
    return load_model(model)


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Return the model as a protobuf, `training_info` included; external data stays external."""
    proto = ir.serde.serialize_model(model)
    proto.training_info.extend(training_info.get(model))
    return proto


def like_argument(model: ir.Model, argument: ModelLike) -> onnx.ModelProto | ir.Model:
    """Return `model` as the type of `argument`: a protobuf for a protobuf, else as it is."""
    return to_proto(model) if isinstance(argument, onnx.ModelProto) else model


def write_model(model: ir.Model, path: Path, *, save_as_external_data: bool = False) -> list[Path]:
    """Write a model; the same model gives the same bytes.

    If the model has external data, is too big for one protobuf, or on request, all tensors of at
    least 1 KiB are streamed to `data_file(path)`, one after the other.

    Args:
        model: The model, which is not changed.
        path: Where to write; a path from `stage_output` never overwrites what the model reads from.
        save_as_external_data: Whether to move big tensors out of a model that could hold them.

    Returns:
        The files written.

    Raises:
        ModelFileError: If a file cannot be written.
    """
    data = data_file(path)
    files = [path]

    def store(tensors: Sequence[ir.TensorProtocol]) -> Sequence[ir.ExternalTensor]:
        if not tensors:
            return []
        files.append(data)
        return ir.external_data.convert_tensors_to_external(tensors, data.parent, data.name)

    try:
        if save_as_external_data or _needs_external_data(model):
            with _big_tensors_stored(model, store):
                proto = to_proto(model)
        else:
            proto = to_proto(model)
        path.write_bytes(proto.SerializeToString(deterministic=True))
    except OSError as error:
        raise ModelFileError(
            f"{path.name}: cannot be written to {path.parent}: {error.strerror or error}; "
            "free disk space or choose another output"
        ) from error
    return files


def check_file(path: Path) -> None:
    """Run the ONNX checker with shape inference on a file that was written.

    Raises:
        ConversionError: If the checker rejects the model.
    """
    try:
        onnx.checker.check_model(path, full_check=True)
    except _CHECKER_ERRORS as error:
        raise ConversionError(_invalid(path.name, error)) from error


def checked(model: ir.Model) -> None:
    """Run the ONNX checker with shape inference, leaving the data of big tensors out.

    Raises:
        ConversionError: If the checker rejects the model.
    """
    try:
        with _checker_file() as (path, weights):
            with _big_tensors_stored(
                model, lambda big: [_external_tensor(tensor, weights) for tensor in big]
            ):
                path.write_bytes(to_proto(model).SerializeToString())
            onnx.checker.check_model(path, full_check=True)
    except _CHECKER_ERRORS as error:
        raise ConversionError(_invalid(_label(model), error)) from error


def _label(model: ir.Model) -> str:
    return f"model {model.graph.name!r}"


def _invalid(source: str, error: BaseException) -> str:
    cause = root_cause(error)
    return f"{source}: not a valid ONNX model: {cause}; correct or export the model again"


def _parse(source: str) -> onnx.ModelProto:
    try:
        return onnx.load(source, format="protobuf", load_external_data=False)
    except OSError as error:
        cause = error.strerror or error
        raise ModelFileError(
            f"{source}: cannot be read: {cause}; give the path of a readable .onnx file"
        ) from error
    except DecodeError as error:
        raise ModelFileError(truncated(source, "its protobuf cannot be parsed")) from error


def _deserialize(proto: onnx.ModelProto, source: str, folder: Path) -> ir.Model:
    """Check a protobuf and make a model of it, which from then on owns it."""
    validate(proto, source, folder)
    try:
        with _checker_file() as (path, weights):
            light = onnx.ModelProto()
            copy_without_data(proto, light, weights)
            path.write_bytes(light.SerializeToString())
            onnx.checker.check_model(path)
        model = ir.serde.deserialize_model(proto)
    except (onnx.checker.ValidationError, ir.serde.SerdeError, ValueError) as error:
        raise ModelFileError(_invalid(source, error)) from error
    for tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            tensor.base_dir = folder
        elif isinstance(tensor, ir.serde.TensorProtoTensor):
            tensor.raw.ClearField("metadata_props")  # onnx_ir would write them twice
    training_info.put(model, list(proto.training_info))
    return model


@contextlib.contextmanager
def _checker_file() -> Iterator[tuple[Path, str]]:
    """Provide a model path for the checker, and the name of an empty data file beside it.

    The checker wants the file of external data to exist, and does not read it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        weights = data_file(path)
        weights.touch()
        yield path, weights.name


def _clone(model: ir.Model) -> ir.Model:
    clone = model.clone()
    clone.meta.update(model.meta)
    return clone


def _independent(model: ir.Model) -> ir.Model:
    for tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor) and (fault := external_fault(tensor)):
            raise ModelFileError(f"{_label(model)}: tensor {tensor.name!r}: {fault}")
    clone = _clone(model)
    _replace_attribute_tensors(clone, _renamable_copy)
    return clone


def _renamable_copy(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Copy a tensor; its name, which onnx_ir changes with that of its value, becomes its own."""
    if isinstance(tensor, ir.serde.TensorProtoTensor):
        own = onnx.TensorProto()
        own.CopyFrom(tensor.raw)
        renamable = ir.serde.TensorProtoTensor(own)
        renamable.metadata_props.update(tensor.metadata_props)
        return renamable
    return copy.copy(tensor)


def _attribute_maps(model: ir.Model) -> Iterator[MutableMapping[str, ir.Attr]]:
    for node in model.graph.all_nodes():
        yield node.attributes
    for function in model.functions.values():
        yield function.attributes
        for node in function.all_nodes():
            yield node.attributes


def _attribute_tensors(attribute: ir.Attr) -> Sequence[ir.TensorProtocol]:
    if attribute.is_ref() or attribute.value is None:
        return ()
    if attribute.type == ir.AttributeType.TENSOR:
        return (attribute.as_tensor(),)
    if attribute.type == ir.AttributeType.TENSORS:
        return attribute.as_tensors()
    return ()


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    functions = model.functions.values()
    for graph in [*model.graphs(), *(body for f in functions for body in f.subgraphs())]:
        yield from graph.initializers.values()


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield the tensors of all initializers and attributes, in subgraphs and functions too."""
    for value in _initializers(model):
        if value.const_value is not None:
            yield value.const_value
    for attributes in _attribute_maps(model):
        for attribute in attributes.values():
            yield from _attribute_tensors(attribute)


def _replace_attribute_tensors(
    model: ir.Model, replacement: Callable[[ir.TensorProtocol], ir.TensorProtocol]
) -> None:
    for attributes in _attribute_maps(model):
        for name, old in list(attributes.items()):
            tensors = [replacement(tensor) for tensor in _attribute_tensors(old)]
            if tensors:
                value = tensors if old.type == ir.AttributeType.TENSORS else tensors[0]
                attributes[name] = ir.Attr(name, old.type, value, doc_string=old.doc_string)


def _inline_bytes(tensors: Iterable[ir.TensorProtocol]) -> int:
    return sum(map(_nbytes, tensors))


def _nbytes(tensor: ir.TensorProtocol) -> int:
    """Return `tensor.nbytes`, without the shape that a protobuf tensor makes anew each time."""
    if isinstance(tensor, ir.serde.TensorProtoTensor):
        elements: int = math.prod(tensor.raw.dims)
        return math.ceil(elements * tensor.dtype.itemsize)
    return tensor.nbytes


def _needs_external_data(model: ir.Model) -> bool:
    tensors = list(_tensors(model))
    return (
        any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
        or _inline_bytes(tensors) > _MAX_INLINE_BYTES
    )


def _is_big(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype != ir.DataType.STRING and _nbytes(tensor) >= _EXTERNAL_THRESHOLD


@contextlib.contextmanager
def _big_tensors_stored(
    model: ir.Model,
    store: Callable[[Sequence[ir.TensorProtocol]], Sequence[ir.ExternalTensor]],
) -> Iterator[None]:
    """Let the big tensors be what `store` makes of them, and the others inside, for a while.

    That is several times quicker than to do it on a clone of a model of many nodes.
    """
    if not any(isinstance(t, ir.ExternalTensor) or _is_big(t) for t in _tensors(model)):
        yield
        return
    initializers = [(value, value.const_value) for value in _initializers(model)]
    attributes = [
        (attributes, attribute)
        for attributes in _attribute_maps(model)
        for attribute in attributes.values()
        if _attribute_tensors(attribute)
    ]
    try:
        _store_big_tensors(model, store)
        yield
    finally:
        for value, tensor in initializers:
            value.const_value = tensor
        for holder, attribute in attributes:
            holder[attribute.name] = attribute


def _store_big_tensors(
    model: ir.Model,
    store: Callable[[Sequence[ir.TensorProtocol]], Sequence[ir.ExternalTensor]],
) -> None:
    """Replace the big tensors by what `store` makes of them, and take the others inside."""
    big = {id(tensor): tensor for tensor in _tensors(model) if _is_big(tensor)}
    stored = dict(zip(big, store(list(big.values())), strict=True))
    for key, tensor in stored.items():
        tensor.doc_string = big[key].doc_string
        tensor.metadata_props.update(big[key].metadata_props)

    def replacement(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        return stored[id(tensor)] if id(tensor) in stored else _in_memory(tensor)

    for value in _initializers(model):
        if value.const_value is not None:
            value.const_value = replacement(value.const_value)
    _replace_attribute_tensors(model, replacement)


def _in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    mapped = _external_tensor(tensor, tensor.location, tensor.offset, tensor.base_dir)
    array = mapped.numpy().copy()
    mapped.release()
    return ir.Tensor(
        array,
        dtype=tensor.dtype,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _external_tensor(
    tensor: ir.TensorProtocol,
    location: str | os.PathLike[str],
    offset: int | None = 0,
    base_dir: str | os.PathLike[str] = "",
) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        location,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        base_dir=base_dir,
    )
