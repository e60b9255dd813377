"""Where a command writes, held against what it reads, before it begins."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from syncbn_convert.cli.showing import STANDARD_OUTPUT
from syncbn_convert.errors import UsageError
from syncbn_convert.options.training import Checkpointing

if TYPE_CHECKING:
    from syncbn_convert.files.staging import Kind

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")

_OUTPUT = "-o"
_FLAGS = {
    "output": _OUTPUT,
    "statistics_out": "--statistics-out",
    "report": "--report",
    "json": "--json",
}
"""Fields that name what is written; every other path is read."""
_MODELS = ("model", "reference", "candidate", "to_keras")
"""What the output may replace, if the user insists."""
_KINDS: Mapping[str, Kind] = {
    "convert": "sync",
    "fold": "deploy",
    "fuse": "fused",
    "unfuse": "unfused",
}


def checked(command: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """Let a command begin only where nothing that it writes is something that it reads.

    Raises:
        UsageError: if it is, if two results have one place, or if one cannot be written.
    """
    signature = inspect.signature(command)

    @functools.wraps(command)
    def begin(*positional: Parameters.args, **named: Parameters.kwargs) -> Returned:
        bound = signature.bind(*positional, **named)
        bound.apply_defaults()
        _check(command.__name__, bound.arguments)
        return command(*positional, **named)

    return begin


def _check(command: str, arguments: Mapping[str, Any]) -> None:
    found = list(_paths(arguments))
    written = [(flag, path) for flag, path, is_written in found if is_written]
    read = [(name, path) for name, path, is_written in found if not is_written]
    if not any(flag != _OUTPUT for flag, _ in written) and len(read) < 2:
        return
    from syncbn_convert.files import staging
    from syncbn_convert.files.data_names import data_file

    model = arguments.get("model")
    writing = arguments.get("writing")
    default = command in _KINDS and all(flag != _OUTPUT for flag, _ in written)
    if default and isinstance(model, Path) and not getattr(writing, "dry_run", False):
        written.append((_OUTPUT, staging.default_output(model, _KINDS[command])))
    for flag, path in written:
        _check_inputs(flag, path, read)
    places = [*written, *((f"the weights of {flag}", data_file(p)) for flag, p in written)]
    for (first, one), (second, other) in itertools.combinations(places, 2):
        if _same(one, other):
            raise UsageError(f"{first} and {second} are both {other}; give each a file of its own")
    for flag, path in written:
        if flag in ("--json", "--report") and not staging.is_special(path):
            staging.check_outputs([path], force=True)


def _paths(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Path, bool]]:
    """Yield flag or name, path, and whether it is written, of all paths that were given."""
    for name, value in arguments.items():
        if isinstance(value, Checkpointing):
            yield "--checkpoint", value.folder / "checkpoint.safetensors", True
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            yield from _paths(fields)
        elif name in _FLAGS and isinstance(value, str | Path) and str(value) != STANDARD_OUTPUT:
            yield _FLAGS[name], Path(value), True
        elif isinstance(value, Path) or (name in ("data", "eval_data") and value):
            yield name, Path(value), False


def _check_inputs(flag: str, path: Path, read: list[tuple[str, Path]]) -> None:
    from syncbn_convert.files import data_names

    for name, source in read:
        if name in _MODELS and flag == _OUTPUT:
            continue
        if _same(path, source):
            raise UsageError(f"{flag} {path}: is an input of this command; give it another file")
        if path.suffix == ".npz" and _same(path.parent, source):
            raise UsageError(f"{flag} {path}: is among the data {source}; give it another folder")
        if name in _MODELS and path.exists() and path.name in data_names.beside(source, path):
            raise UsageError(f"{flag} {path}: holds weights of {source}; give it another file")


def _same(first: Path, second: Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:
        return os.path.realpath(first) == os.path.realpath(second)
