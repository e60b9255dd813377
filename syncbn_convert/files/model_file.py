"""Reading, checking and writing ONNX model files; weights stay on disk until they are used."""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from syncbn_convert.doors.file_names import is_utf8
from syncbn_convert.errors import (
    ConversionError,
    ModelFileError,
    UsageError,
    no_room_for_temporary_files,
)
from syncbn_convert.files import (
    blame,
    dated_attributes,
    expansion,
    lenient,
    parallel_writer,
    wire_format,
)
from syncbn_convert.files.data_names import data_file
from syncbn_convert.files.model_validation import copy_without_data, truncated, validate
from syncbn_convert.files.structure import require_sound, require_text
from syncbn_convert.files.tensor_data import external_fault, root_cause
from syncbn_convert.files.tensors import (
    InsideTensor,
    big_initializers_withheld,
    big_tensors_stored,
    external_tensor,
    find_external_data,
    inline_bytes,
    inside_tensors_loaded,
    is_outside,
    replace_attribute_tensors,
    tensors_of,
)
from syncbn_convert.form import form_check, provenance, renamed_form, training_info
from syncbn_convert.graph import graphs, map_types
from syncbn_convert.graph.light_proto import complete_calls
from syncbn_convert.graph.value_types import forget_undefined_types

_CHECKER_ERRORS = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError)

Model = onnx.ModelProto | ir.Model
ModelLike = str | os.PathLike[str] | onnx.ModelProto | ir.Model

_NOTES = "syncbn_convert.notes"
_MAX_INLINE_BYTES = 2_000_000_000  # protobuf ends at 2**31 - 1; the rest is for the graph


def load_model(path: str | os.PathLike[str]) -> ir.Model:
    """Read and check a model file; external data is checked, not read.

    Args:
        path: A protobuf `.onnx` file.

    Returns:
        The model, with its `training_info` (see `syncbn_convert.form.training_info`).

    Raises:
        ModelFileError: If the file cannot be read, is no valid ONNX model, or its external data is
            missing, cut off or outside its folder.
    """
    source = os.fspath(path)
    return _deserialize(_parse(source), source, Path(path).absolute().parent, linked=_target(path))


def map_model(path: str | os.PathLike[str]) -> ir.Model:
    """Read and check a model file as `load_model` does, but leave big initializers where they are.

    The file must not be overwritten in place while the model is used; it may be replaced only after
    the last tensor was read.
    """
    source = os.fspath(path)
    inside = Path(path).name
    proto, folder = _parse_light(source), Path(path).absolute().parent
    model = _deserialize(proto, source, folder, inside=inside, linked=_target(path))
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and os.fspath(tensor.location) == inside:
            value.const_value = InsideTensor(path, tensor)
    return model


def read_unchecked(path: str | os.PathLike[str]) -> ir.Model:
    """Read a model file that was checked before; only what onnx_ir cannot hold is an error."""
    proto = onnx.load(path, load_external_data=False)
    lenient.put_in_order(proto)
    notes = dated_attributes.leave_out(proto)
    types = map_types.set_aside(proto)
    model = ir.serde.deserialize_model(proto)
    _note(model, notes)
    find_external_data(model, Path(path).absolute().parent)
    map_types.keep(model, types)
    return model


def as_model(model: ModelLike) -> ir.Model:
    """Return a model that can be changed without changing the argument.

    Args:
        model: A path, a protobuf, or an `onnx_ir.Model`, whose weights are shared, not copied.
            External data of a protobuf is looked for in the working directory.

    Raises:
        ModelFileError: If the argument cannot be read or is no valid model, as for `load_model`.
        UsageError: If it is something else.
    """
    if isinstance(model, ir.Model):
        return _independent(model)
    if isinstance(model, onnx.ModelProto):
        own = onnx.ModelProto()
        own.CopyFrom(model)
        return _deserialize(own, f"model {model.graph.name!r}", Path.cwd())
    if not isinstance(model, str | os.PathLike):
        raise UsageError(
            f"a model is a path, an onnx.ModelProto or an onnx_ir.Model, not {type(model).__name__}"
        )
    return load_model(model)


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Return the model as a protobuf, `training_info` included; external data stays external."""
    with inside_tensors_loaded(model):
        proto = ir.serde.serialize_model(model)
    proto.training_info.extend(training_info.get(model))
    map_types.put_back(proto, model)
    return proto


def write_model(
    model: ir.Model, path: Path, *, save_as_external_data: bool = False, data: Path | None = None
) -> list[Path]:
    """Write a model; the same model gives the same bytes.

    Big tensors are written one after the other: into the file, or, if the model has external data,
    is too big for one protobuf, or on request, all of at least 1 KiB to `data_file(path)`.

    Args:
        model: The model, which is not changed.
        path: Where to write; a path from `stage_output` never overwrites what the model reads from.
        save_as_external_data: Whether to move big tensors out of a model that could hold them.
        data: Where to, in the folder of `path`; None is `data_file(path)`.

    Returns:
        The files written.

    Raises:
        ModelFileError: If a file cannot be written.
    """
    try:
        if save_as_external_data or _needs_external_data(model):
            return _write_with_external_data(model, path, data or data_file(path))
        _write_inside(model, path)
        return [path]
    except OSError as error:
        raise _cannot_write(path, error) from error


def fault_of(path: str | os.PathLike[str]) -> str:
    """Return what onnx's inference of types and shapes says against a file; empty if nothing.

    Stricter than reading, which takes what runtimes run.
    """
    try:
        with _checker_file() as (light, weights):
            proto = onnx.ModelProto()
            copy_without_data(_parse_light(os.fspath(path)), proto, weights)
            lenient.put_in_order(proto)
            _check(proto, light, infer=True)
    except (*_CHECKER_ERRORS, ValueError) as error:
        return _invalid(os.fspath(path), error)
    except ModelFileError:  # no file any more, or a protobuf that was given
        return ""
    return ""


def check_file(path: Path) -> None:
    """Run the ONNX checker with shape inference on a file that was written.

    Big initializers are left out, in a copy beside the file that is removed again.

    Raises:
        ConversionError: If the checker rejects the model.
    """
    light = path.with_name(f"{path.name}.light")
    try:
        proto = onnx.ModelProto.FromString(wire_format.read_without_weights(path))
        _check(proto, light, infer=True)
    except _CHECKER_ERRORS as error:
        raise ConversionError(_invalid(path.name, error)) from error
    except OSError as error:
        raise _cannot_write(light, error) from error
    finally:
        light.unlink(missing_ok=True)


def checked(model: ir.Model) -> None:
    """Run the ONNX checker with shape inference, leaving the data of big tensors out.

    Raises:
        ConversionError: If the checker rejects the model.
    """
    try:
        with _checker_file() as (path, weights):
            with big_tensors_stored(
                model, lambda big: [external_tensor(tensor, weights) for tensor in big]
            ):
                proto = to_proto(model)
            _check(proto, path, infer=True)
    except _CHECKER_ERRORS as error:
        raise ConversionError(_invalid(_label(model), error)) from error


def _label(model: ir.Model) -> str:
    return f"model {model.graph.name!r}"


def _invalid(source: str, error: BaseException) -> str:
    cause = root_cause(error)
    return f"{source}: not a valid ONNX model: {cause}; correct or export the model again"


def _cannot_write(path: Path, error: OSError) -> ModelFileError:
    return ModelFileError(
        f"{path.name}: cannot be written to {path.parent}: {error.strerror or error}; "
        "free disk space or choose another output"
    )


def _write_with_external_data(model: ir.Model, path: Path, data: Path) -> list[Path]:
    files = [path]

    def store(tensors: Sequence[ir.TensorProtocol]) -> Sequence[ir.ExternalTensor]:
        if not tensors:
            return []
        files.append(data)
        return parallel_writer.write_tensors(tensors, data)

    with big_tensors_stored(model, store):
        proto = to_proto(model)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return files


def _write_inside(model: ir.Model, path: Path) -> None:
    with big_initializers_withheld(model) as weights:
        proto = to_proto(model)
    parallel_writer.write_pieces(wire_format.pieces_with_weights(proto, weights), path)


def _parse_light(source: str) -> onnx.ModelProto:
    try:
        proto = onnx.ModelProto()
        proto.ParseFromString(wire_format.read_without_weights(source))
        return proto
    except DecodeError as error:
        raise ModelFileError(truncated(source, "its protobuf cannot be parsed")) from error
    except (OSError, ValueError):
        return _parse(source)


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


def _deserialize(
    proto: onnx.ModelProto,
    source: str,
    folder: Path,
    *,
    inside: str | None = None,
    linked: Path | None = None,
) -> ir.Model:
    """Check a protobuf and make a model of it, which from then on owns it.

    Args:
        proto: The model.
        source: What to call it in messages.
        folder: Where its external data is.
        inside: Location of data that is in the model's own file.
        linked: The folder of the file that the model's path is a link to, as caches have it; the
            links beside the model may lead there.
    """
    folders = [folder] if linked is None else [folder, linked]
    if not is_utf8(source):
        raise ModelFileError(
            f"{source}: its name is not UTF-8, which ONNX Runtime does not open; rename the file"
        )
    blame.note_read(source)
    validate(proto, source, folders, inside)
    if too_large := expansion.fault(proto):
        raise ModelFileError(f"{source}: {too_large}")
    try:
        notes = dated_attributes.leave_out(proto)
    except ConversionError as error:
        raise ModelFileError(f"{source}: {error}") from error
    try:
        with _checker_file() as (path, weights):
            light = onnx.ModelProto()
            copy_without_data(proto, light, weights)
            require_text(light, source)
            require_sound(proto, source)
            if lenient.put_in_order(proto):
                lenient.put_in_order(light)
            _check(light, path, infer=False)
        types = map_types.set_aside(proto)
        model = ir.serde.deserialize_model(proto)
    except (*_CHECKER_ERRORS, ir.serde.SerdeError, ValueError) as error:
        raise ModelFileError(_invalid(source, error)) from error
    find_external_data(model, folder, inside=inside)
    for tensor in tensors_of(model):
        if isinstance(tensor, ir.serde.TensorProtoTensor):
            tensor.raw.ClearField("metadata_props")  # onnx_ir would write them twice
    training_info.put(model, list(proto.training_info))
    forget_undefined_types(model)
    map_types.keep(model, types)
    renamed_form.restore(model)
    provenance.check(model)
    form_check.check(model)
    _note(model, notes)
    return model


def _note(model: ir.Model, notes: list[str]) -> None:
    if notes:
        model.meta[_NOTES] = tuple(notes)


def notes_of(model: ir.Model) -> tuple[str, ...]:
    """Return what a user should know about how a model was read."""
    notes: tuple[str, ...] = model.meta.get(_NOTES, ())
    return notes


def _target(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.realpath(path)).parent


def _check(light: onnx.ModelProto, path: Path, *, infer: bool) -> None:
    """Run the checker on a model, which is changed, in a file at `path`, and shape inference."""
    lenient.please_checker(light)
    complete_calls(light)
    with lenient.missing_shapes_filled(light.graph):
        path.write_bytes(light.SerializeToString())
    onnx.checker.check_model(path)
    if infer:
        onnx.shape_inference.infer_shapes(
            light.SerializeToString(), check_type=True, strict_mode=True
        )


@contextlib.contextmanager
def _checker_file() -> Iterator[tuple[Path, str]]:
    """Provide a model path for the checker, and the name of an empty data file beside it.

    The checker wants the file of external data to exist, and does not read it.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            weights = data_file(path)
            weights.touch()
            yield path, weights.name
    except OSError as error:
        raise ModelFileError(no_room_for_temporary_files(error)) from error


def _independent(model: ir.Model) -> ir.Model:
    for tensor in tensors_of(model):
        if isinstance(tensor, ir.ExternalTensor) and (fault := external_fault(tensor)):
            raise ModelFileError(f"{_label(model)}: tensor {tensor.name!r}: {fault}")
    clone = graphs.clone(model)
    replace_attribute_tensors(clone, _renamable_copy)
    forget_undefined_types(clone)
    renamed_form.restore(clone)
    provenance.check(clone)
    form_check.check(clone)
    _note(clone, dated_attributes.leave_out_of(clone))
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


def _needs_external_data(model: ir.Model) -> bool:
    tensors = list(tensors_of(model))
    return any(map(is_outside, tensors)) or inline_bytes(tensors) > _MAX_INLINE_BYTES
