"""Output discipline: a model appears at its final path whole and checked, or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from syncbn_convert.errors import ModelFileError, UsageError
from syncbn_convert.files import wire_format

Kind = Literal["sync", "deploy", "fused", "unfused"]
_MODEL_SUFFIXES = (".onnx", ".keras", ".h5", ".hdf5")
_KIND_SUFFIXES = (".sync", ".deploy", ".fused")


def data_file(model: Path) -> Path:
    """Return the path of the external data file that belongs to a model file."""
    return model.with_name(f"{model.name}.data")


def default_output(input: Path, kind: Kind) -> Path:  # noqa: A002
    """Return where the result goes if the user does not say: beside the input.

    Args:
        input: Model file or SavedModel folder.
        kind: What the result is; it replaces the kind that the input's name ends in.
    """
    source = input if input.name not in ("", "..") else input.resolve()
    stem = source.stem if source.suffix.lower() in _MODEL_SUFFIXES else source.name
    for suffix in _KIND_SUFFIXES:
        stem = stem.removesuffix(suffix)
    return source.with_name(f"{stem}.{kind}.onnx")


class StagedOutput:
    """A model in the making, in a temporary folder beside the place where it will stand.

    Attributes:
        path: Where to write the model; its name is the final one.
        data: Where to write its external data: `data_file(path)`, or, where the model to be
            replaced has its weights under that name, another, so that it stays whole until the
            moment when it is replaced.
    """

    def __init__(self, folder: Path, output: Path) -> None:
        self.path = folder / output.name
        self._output = output
        locations = _data_locations(output)
        self._used = [path for path in _data_files(output) if path.name in locations]
        free = [path for path in _data_files(output) if path not in self._used]
        self.data = folder / free[0].name

    @contextlib.contextmanager
    def flushed_meanwhile(self) -> Iterator[None]:
        """Let what is written go to the disk while it is looked at; `commit` waits for less then.

        Raises:
            ModelFileError: If the disk fails.
        """
        with ThreadPoolExecutor(1) as pool:
            flushing = pool.submit(self._flush)
            yield
            flushing.result()

    def commit(self) -> None:
        """Move the model to its final path, its weights first.

        A data file that the replaced model needed is removed. Tensors that were read lazily from
        replaced files are no longer valid: load the model again.

        Raises:
            ModelFileError: If a file cannot be moved.
        """
        self._flush()
        try:
            if self.data.exists():
                os.replace(self.data, self._output.with_name(self.data.name))
            os.replace(self.path, self._output)
            for path in self._used:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise ModelFileError(_cannot_write(self._output, error)) from error

    def _flush(self) -> None:
        try:
            for path in (self.data, self.path):
                if path.exists():
                    _flush_to_disk(path)
        except OSError as error:
            raise ModelFileError(_cannot_write(self._output, error)) from error


def check_outputs(
    outputs: Sequence[Path | None], *, inputs: Sequence[Path] = (), force: bool = False
) -> None:
    """Refuse, before long work, outputs that `stage_output` would refuse after it.

    Raises:
        UsageError: if an output is an input or exists, and `force` is not given.
        ModelFileError: if an output is a folder, or nothing can be written where it should stand.
    """
    for output in outputs:
        if output is not None:
            with stage_output(output, inputs=inputs, force=force):
                pass


@contextlib.contextmanager
def stage_output(
    output: Path, *, inputs: Sequence[Path] = (), force: bool = False
) -> Iterator[StagedOutput]:
    """Provide a temporary place for a model that will stand at `output` after `commit()`.

    Whatever was not committed when the context ends, normally or not, is removed.

    Args:
        output: Final path of the model.
        inputs: Files that the command reads.
        force: Whether `output` and its data file may be replaced, even if they are inputs.

    Yields:
        The staged output.

    Raises:
        UsageError: If `output` is an input or exists, and `force` is not given.
        ModelFileError: If `output` is a folder, or nothing can be written where it should stand.
    """
    _refuse_folder(output)
    if not force:
        _refuse_existing(output, inputs)
    try:
        temporary = tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.")
    except OSError as error:
        raise ModelFileError(_cannot_write(output, error)) from error
    with temporary as folder:
        yield StagedOutput(Path(folder), output)


def _data_files(model: Path) -> tuple[Path, Path]:
    return data_file(model), model.with_name(f"{model.name}.1.data")


def _data_locations(model: Path) -> set[str]:
    """Return the files where a model file, if there is one, keeps weights."""
    try:
        proto = onnx.ModelProto.FromString(wire_format.read_without_weights(model))
    except (OSError, DecodeError, ValueError):
        return set()
    return {
        entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _refuse_folder(output: Path) -> None:
    if not output.name:
        raise ModelFileError(f"'{output}' is no file name; choose the path of a file as output")
    for path in (output, data_file(output)):
        if os.path.isdir(path):
            raise ModelFileError(f"{path}: is a folder; choose the path of a file as output")
        if os.path.exists(path) and not os.path.isfile(path):
            raise ModelFileError(f"{path}: is a device or pipe; choose the path of a file")


def _refuse_existing(output: Path, inputs: Sequence[Path]) -> None:
    if any(_same_file(output, path) for path in inputs):
        raise UsageError(f"{output}: is the input itself; pass --force to replace it")
    for path in (output, data_file(output)):
        if os.path.lexists(path):
            raise UsageError(f"{path}: exists; pass --force to replace it")


def _same_file(first: Path, second: Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False


def _flush_to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _cannot_write(output: Path, error: OSError) -> str:
    cause = error.strerror or error
    return f"{output}: cannot be written: {cause}; choose a folder that exists and is writable"
