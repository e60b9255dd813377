"""Sequences, maps and optionals as the tensors in them, which are compared one by one.

A sequence `s` becomes `s[0]`, `s[1]` and so on; maps become one tensor of their values, by sorted
keys and, in a sequence of maps, map by map. `s (structure)` says how many there are and which keys.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from syncbn_convert.verification.tolerance import Array

STRUCTURE = " (structure)"
EMPTY = ("nothing", "sequence of 0")
"""Structures that hold no tensor."""


def leaves(name: str, value: Any) -> dict[str, Array]:
    """Return the tensors of a value that a runtime returned, by name."""
    if isinstance(value, np.ndarray | np.generic):
        return {name: np.asarray(value)}
    found: dict[str, Array] = {name + STRUCTURE: np.array(_structure(value))}
    if isinstance(value, Mapping):
        value = [value]
    if value and all(isinstance(part, Mapping) for part in value):
        numbers = [part[key] for part in value for key in sorted(part, key=str)]
        array = np.asarray(numbers)
        found[name] = array.astype(np.float32) if array.dtype == np.float64 else array
        return found
    for index, part in enumerate(value or ()):
        found |= leaves(f"{name}[{index}]", part)
    return found


def selected(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Array]:
    """Return the tensors of outputs for names of outputs or of such tensors.

    Args:
        values: What a runtime returned, by output.
        names: An output stands for all its tensors; a tensor that is not there is an empty one.
    """
    by_output = {name: leaves(name, value) for name, value in values.items()}
    every = {name: leaf for found in by_output.values() for name, leaf in found.items()}
    result: dict[str, Array] = {}
    for name in names:
        if name in by_output and name + STRUCTURE not in names:
            result |= by_output[name]
        else:
            result[name] = every.get(name, np.zeros(0, np.float32))
    return result


def outputs_of(names: Sequence[str], known: Collection[str]) -> list[str]:
    """Return the outputs that hold tensors of these names, each once.

    Args:
        names: Of outputs, or of tensors in them.
        known: All outputs.
    """
    return list(dict.fromkeys(output_of(name, known) for name in names))


def output_of(name: str, known: Collection[str]) -> str:
    """Return the output that holds a tensor."""
    while name not in known and name.endswith((STRUCTURE, "]")):
        end = name.rfind("[") if name.endswith("]") else -len(STRUCTURE)
        name = name[:end]
    return name


def filled(runs: Sequence[dict[str, Array]]) -> None:
    """Give each run the tensors that any of them has; those that are not there are empty."""
    kinds = {name: value.dtype for run in runs for name, value in run.items()}
    for run in runs:
        for name, dtype in kinds.items():
            run.setdefault(name, np.zeros(0, dtype))


def mapped(value: Any, change: Callable[[Array], Array]) -> Any:
    """Return what is fed to an input, with its tensors changed."""
    if isinstance(value, list):
        return [mapped(part, change) for part in value]
    if isinstance(value, dict):
        return {key: change(np.asarray(part)).item() for key, part in value.items()}
    return change(value)


def _structure(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return f"map of {', '.join(map(repr, sorted(value, key=str)))}"
    if value and all(isinstance(part, Mapping) for part in value):
        kinds = list(dict.fromkeys(_structure(part) for part in value))
        return f"sequence of {len(value)}: {'; '.join(kinds)}"
    return f"sequence of {len(value)}"
