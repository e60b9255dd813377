"""Where a training run stands, in a file that is whole or not there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from syncbn_convert.doors import safetensors_file
from syncbn_convert.errors import ModelFileError, UsageError
from syncbn_convert.files import scratch, staging
from syncbn_convert.files.locked_folder import Busy, LockedFolder

Array = npt.NDArray[Any]

FILE = "checkpoint.safetensors"
_METADATA_KEY = "syncbn_convert.checkpoint"
_VERSION = 1
_IN_USE = ".in-use"
_FIELD_TYPES: dict[tuple[str, ...], Any] = {
    ("step", "epoch", "batch"): int,
    ("seconds",): int | float,
    ("sums", "epochs", "losses"): list,
    ("identity",): dict,
}
_KINDS = ("parameters", "slots", "statistics")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The whole state of a run between two updates.

    Attributes:
        identity: What must be the same for a run to go on: model, data, options, replicas.
        step: Updates done.
        epoch: Number of the epoch, from 0.
        batch: Batches of that epoch done.
        sums: What the epoch has summed up so far, over all replicas.
        epochs: What was reported of the epochs done.
        losses: Loss of every step done.
        seconds: Wall time so far.
        parameters: Trained parameters by name.
        slots: The optimizer's slots by name.
        statistics: Moving statistics by name.
    """

    identity: dict[str, Any]
    step: int
    epoch: int
    batch: int
    sums: list[float]
    epochs: list[dict[str, Any]]
    losses: list[float]
    seconds: float
    parameters: dict[str, Array]
    slots: dict[str, Array]
    statistics: dict[str, Array]


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Replace the folder's checkpoint at once.

    The random order of samples follows from seed and epoch, so no generator has a state.

    Raises:
        ModelFileError: if it cannot be written.
    """
    content = {field.name: getattr(checkpoint, field.name) for field in _fields()}
    tensors = {
        f"{kind}/{name}": np.ascontiguousarray(array)
        for kind in _KINDS
        for name, array in sorted(content.pop(kind).items())
    }
    metadata = {_METADATA_KEY: json.dumps({"version": _VERSION, **content})}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with staging.stage_output(folder / FILE, force=True) as staged:
            staged.path.write_bytes(safetensors.numpy.save(tensors, metadata=metadata))
            staged.commit()
    except OSError as error:
        raise _not_written(folder, error) from error


def _not_written(folder: Path, error: OSError) -> ModelFileError:
    return ModelFileError(
        f"{folder}: the checkpoint cannot be written: {error.strerror or error}; choose a "
        "folder that is writable and has room"
    )


@contextlib.contextmanager
def had(folder: Path) -> Iterator[None]:
    """Have a folder of checkpoints for a while, so that no other run writes there.

    Raises:
        UsageError: if another run has it.
        ModelFileError: if it cannot be made.
    """
    try:
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = LockedFolder(folder / _IN_USE)
    except Busy:
        raise UsageError(
            f"{folder}: another run keeps its checkpoints there; wait for that, or choose another "
            "folder"
        ) from None
    except OSError as error:
        raise _not_written(folder, error) from error
    scratch.claim(lock.path)
    try:
        yield
    finally:
        lock.remove()
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # it stays if there is a checkpoint


def load(folder: Path) -> Checkpoint | None:
    """Return the folder's checkpoint, or None if it has none.

    Raises:
        ModelFileError: if it cannot be read, or `save` did not write it.
    """
    path = folder / FILE
    if not path.exists():
        return None
    tensors, content = safetensors_file.read(
        path,
        _METADATA_KEY,
        kind="a checkpoint of this version of syncbn-convert",
        cure="remove it to begin anew",
    )
    parts: dict[str, dict[str, Array]] = {kind: {} for kind in _KINDS}
    for name, array in tensors.items():
        kind, _, key = name.partition("/")
        parts.setdefault(kind, {})[key] = array
    fault = _fault(content, parts)
    if fault:
        raise ModelFileError(
            f"{path}: not a checkpoint of this version of syncbn-convert ({fault}); remove it to "
            "begin anew"
        )
    del content["version"]
    return Checkpoint(**{**content, **parts})


def _fault(content: dict[str, Any], parts: dict[str, dict[str, Array]]) -> str:
    """Return what is wrong with what a checkpoint says; empty if nothing is."""
    if content.get("version") != _VERSION:
        return "'version'"
    wanted = {field.name for field in _fields()} - set(_KINDS)
    odd = (wanted ^ (content.keys() - {"version"})) | (parts.keys() - set(_KINDS))
    if odd:
        return f"'{min(odd)}'"
    for names, kind in _FIELD_TYPES.items():
        for name in names:
            if isinstance(content[name], bool) or not isinstance(content[name], kind):
                return f"'{name}' is {content[name]!r:.40}"
    if min(content["step"], content["epoch"], content["batch"]) < 0:
        return "a count below 0"
    numbers = [*content["sums"], *content["losses"]]
    if not all(isinstance(value, int | float) for value in numbers):
        return "a sum or loss that is no number"
    return "" if all(isinstance(entry, dict) for entry in content["epochs"]) else "'epochs'"


def check_free(folder: Path) -> None:
    """Refuse to begin anew where a checkpoint is.

    Raises:
        UsageError: if there is one.
    """
    if (folder / FILE).exists():
        raise UsageError(
            f"{folder / FILE}: is there already; pass --resume to go on from it, or --force to "
            "begin anew"
        )


def check_same(mine: dict[str, Any], theirs: dict[str, Any], folder: Path) -> None:
    """Refuse to go on from another run's checkpoint.

    Raises:
        UsageError: naming what differs.
    """
    own, other = (dict(_leaves(json.loads(json.dumps(facts)))) for facts in (mine, theirs))
    for name in {**own, **other}:
        if own.get(name) != other.get(name):
            raise UsageError(
                f"{folder / FILE}: was made with {name} {_short(other.get(name))}, and this run "
                f"has {_short(own.get(name))}; resume with the same, or begin anew elsewhere"
            )


def _leaves(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", value


def _fields() -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(Checkpoint)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
