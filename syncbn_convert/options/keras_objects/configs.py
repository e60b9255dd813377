"""Reading Keras' names and configurations, such as `{"class_name": "L2", "config": {...}}`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from syncbn_convert.errors import UsageError

Made = TypeVar("Made")

_CUTOFF = 0.4
"""Likeness, from 0 to 1, below which a name is no suggestion."""
_LARGEST = 3.4028234663852886e38
"""Of float32, the type of parameters and of the loss."""
_SHOWN = 20
_SERIALIZED = {"module", "class_name", "config", "registered_name"}
"""Keys of what `keras.initializers.serialize` and its like return."""


def read_config(given: Any, known: Mapping[str, Callable[..., Made]], kind: str) -> Made:
    """Make the object that a name or a configuration describes.

    Args:
        given: A name in any of Keras' spellings (`RandomNormal`, `random_normal`), or a dictionary
            with `class_name` and `config`.
        known: Dataclasses, or functions that make them, by name.
        kind: What errors call it.

    Raises:
        UsageError: naming the nearest known name or option where one is unknown.
    """
    name, config = _name_and_config(given, kind)
    by_key = {_key(spelling): make for spelling, make in known.items()}
    make = by_key.get(_key(name))
    if make is None:
        raise UsageError(f"unknown {kind} '{name}'; {_nearest(name, known)}")
    try:
        return make(**config)
    except TypeError as error:
        raise UsageError(f"{kind} {name}: {_without_call(str(error))}") from error


def require_number(owner: object, field: str) -> None:
    """Refuse a field that is no number, or that float32 cannot hold.

    Raises:
        UsageError: naming the field.
    """
    value = getattr(owner, field)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= _LARGEST:
        shown = repr(value) if len(repr(value)) <= _SHOWN else f"{repr(value)[:_SHOWN]}..."
        raise UsageError(f"{type(owner).__name__}: {field} {shown} is not a finite float32 number")


def describe(made: Any) -> str:
    """Return a short text such as `RandomNormal(stddev=0.02, seed=7)`: what is not the default."""
    changed = [
        f"{field.name}={getattr(made, field.name)!r}"
        for field in dataclasses.fields(made)
        if getattr(made, field.name) != field.default
    ]
    return f"{type(made).__name__}({', '.join(changed)})" if changed else type(made).__name__


def nearest_name(name: str, known: Mapping[str, Any] | list[str]) -> str | None:
    """Return the known name that looks most like `name`, if one does."""
    found = difflib.get_close_matches(name.lower(), [entry.lower() for entry in known], 1, _CUTOFF)
    return next((entry for entry in known if found and entry.lower() == found[0]), None)


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = nearest_name(name, known)
    return f"did you mean '{near}'?" if near else f"known are {', '.join(known)}"


def _name_and_config(given: Any, kind: str) -> tuple[str, dict[str, Any]]:
    if isinstance(given, str):
        return given, {}
    if not isinstance(given, Mapping) or not isinstance(given.get("class_name"), str):
        raise UsageError(
            f"{kind} {given!r} is neither a name nor a configuration; write "
            '{"class_name": "...", "config": {...}}'
        )
    config = given.get("config") or {}
    unknown = sorted(str(key) for key in set(given) - _SERIALIZED)
    if unknown or not isinstance(config, Mapping):
        raise UsageError(
            f"{kind} {given['class_name']}: {', '.join(unknown) or 'config'} does not belong "
            'there; write {"class_name": "...", "config": {...}}'
        )
    return given["class_name"], {str(name): value for name, value in config.items()}


def _key(name: str) -> str:
    return name.replace("_", "").lower()


def _without_call(message: str) -> str:
    """Turn what Python says of a wrong argument into something that speaks of the option."""
    return message.partition("() ")[2] or message
