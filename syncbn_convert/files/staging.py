"""Output discipline: a model appears at its final path whole and checked, or not at all."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from syncbn_convert.doors.file_names import is_utf8
from syncbn_convert.errors import ModelFileError, UsageError
from syncbn_convert.files import data_names, pipes, scratch
from syncbn_convert.files.data_names import data_file as data_file
from syncbn_convert.files.locked_folder import JOURNAL, Busy, LockedFolder

Kind = Literal["sync", "deploy", "fused", "unfused"]
_MODEL_SUFFIXES = (".onnx", ".keras", ".h5", ".hdf5")
_KIND_SUFFIXES = (".sync", ".deploy", ".fused")
_NEW = "new"
_LONGEST_NAME = 255
_ANY = "surrogateescape"
"""Names of files are bytes to the system."""


def default_output(input: Path, kind: Kind) -> Path:  # noqa: A002
    """Return where the result goes if the user does not say: beside the input.

    Args:
        input: Model file or SavedModel folder.
        kind: What the result is; it replaces the kind that the input's name ends in.

    Raises:
        UsageError: If the input is a pipe.
    """
    if pipes.is_pipe(input):
        raise UsageError(f"{input}: is a pipe, beside which no result can stand; give -o FILE")
    source = input if input.name not in ("", "..") else input.resolve()
    stem = source.stem if source.suffix.lower() in _MODEL_SUFFIXES else source.name
    for suffix in _KIND_SUFFIXES:
        stem = stem.removesuffix(suffix)
    return source.with_name(f"{stem}.{kind}.onnx")


class StagedOutput:
    """A model in the making, in a temporary folder beside the place where it will stand.

    Attributes:
        path: Where to write the model; its name is the final one.
    """

    def __init__(
        self, folder: Path, output: Path, *, inputs: Sequence[Path] = (), force: bool = False
    ) -> None:
        self.path = folder / _NEW / output.name
        self.path.parent.mkdir()
        self._journal = folder / JOURNAL
        self._output = output
        self._force = force
        self._inputs = inputs

    @functools.cached_property
    def data(self) -> Path:
        """Where to write its external data, as it is when this is first asked for.

        It is `data_file(path)`, or, where the model to be replaced has its weights under that name,
        or an input has, one that they do not use, so that they stay whole.
        """
        others = set[str]()
        if self._force and data_file(self._output).exists():
            others = set().union(*(data_names.beside(path, self._output) for path in self._inputs))
        return self.path.with_name(data_names.free(self._output, self._used | others))

    @functools.cached_property
    def _used(self) -> set[str]:
        return data_names.of_model(self._output) if self._force else set()

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
        replaced files are no longer valid: load the model again. A process that is killed meanwhile
        leaves the old model whole or the new one, and a list of what is left over then.

        Raises:
            UsageError: If something stands there by now, and `force` was not given.
            ModelFileError: If a file cannot be moved.
        """
        self._flush()
        if not self._force:
            _refuse_existing(self._output, ())
        try:
            with signals_held():
                if self._used or self.data.exists():
                    names = [self._output.name, self.data.name, *sorted(self._used)]
                    self._journal.write_text("\0".join(names), encoding="utf-8", errors=_ANY)
                if self.data.exists():
                    os.replace(self.data, self._output.with_name(self.data.name))
                os.replace(self.path, self._output)
                for name in self._used:
                    self._output.with_name(name).unlink(missing_ok=True)
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

    Whatever was not committed when the context ends, normally or not, is removed. Until then no
    other process can stage the same output; what a process left there that was killed is removed
    first. An output that is a link stays one: the file that it leads to is written.

    Args:
        output: Final path of the model.
        inputs: Files that the command reads.
        force: Whether `output` and its data file may be replaced, even if they are inputs.

    Yields:
        The staged output.

    Raises:
        UsageError: If `output` is an input or exists, and `force` is not given, or if another
            process is about to write it.
        ModelFileError: If `output` is a folder, or nothing can be written where it should stand.
    """
    place = Path(os.path.realpath(output)) if os.path.islink(output) else output
    if not is_utf8(str(place)):
        raise UsageError(f"{output}: its name is not UTF-8; choose another output")
    _refuse_folder(output, place)
    if not force:
        _refuse_existing(output, inputs)
    try:
        folder = LockedFolder(_folder_of(place), _recover)
    except Busy:
        raise UsageError(
            f"{output}: another process is writing it; wait for that, or choose another output"
        ) from None
    except OSError as error:
        raise ModelFileError(_cannot_write(output, error)) from error
    scratch.claim(folder.path)
    try:
        if not force:
            _refuse_existing(output, inputs)
        yield StagedOutput(folder.path, place, inputs=inputs, force=force)
    finally:
        folder.remove()


def clear_up(folder: Path) -> None:
    """Remove what a process that was killed left in a folder, if nobody else has it now."""
    if folder.exists():
        with contextlib.suppress(Busy, OSError):
            LockedFolder(folder, _recover).remove()


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Let signals that Python code handles wait until the block ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    handlers = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
        if callable(handler := signal.getsignal(number))
    }
    for number in handlers:
        signal.signal(number, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in waiting[:1]:
            signal.raise_signal(number)


def _folder_of(output: Path) -> Path:
    name = f".{output.name}.in-progress"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(output.name)).hexdigest()}.in-progress"
    return output.with_name(name)


def _recover(folder: Path) -> None:
    """Remove data that no model uses, as the list of a process says that was killed."""
    try:
        text = (folder / JOURNAL).read_text(encoding="utf-8", errors=_ANY)
    except OSError:
        return
    output, *names = (folder.with_name(name) for name in text.split("\0"))
    used = data_names.of_model(output)
    for path in names:
        if path.name not in used:
            path.unlink(missing_ok=True)


def _refuse_folder(output: Path, place: Path) -> None:
    if not output.name:
        raise ModelFileError(f"'{output}' is no file name; choose the path of a file as output")
    if os.path.islink(place):
        raise ModelFileError(f"{output}: is a link that leads round in a circle; choose another")
    for path in (place, data_file(place)):
        if os.path.isdir(path):
            raise ModelFileError(f"{path}: is a folder; choose the path of a file as output")
        if os.path.exists(path) and not os.path.isfile(path):
            raise ModelFileError(f"{output}: is a device or pipe; choose the path of a file")
    if is_special(place):
        raise ModelFileError(
            f"{output}: is what a standard stream of this process leads to; choose another file"
        )


def is_special(path: Path) -> bool:
    """Whether a path leads to a device, a pipe or a standard stream, where nothing is replaced."""
    exists = os.path.exists(path) and not os.path.isdir(path)
    return exists and (not os.path.isfile(path) or any(_is_stream(path, n) for n in range(3)))


def _is_stream(place: Path, descriptor: int) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.stat(place), os.fstat(descriptor))
    return False


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
