"""Options of `SyncBatchNormalization` in a TOML file, by patterns of node names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from syncbn_convert.doors.nested_text import parse_toml
from syncbn_convert.errors import UsageError
from syncbn_convert.options.keras_objects.configs import nearest_name
from syncbn_convert.options.layers import (
    OPTION_NAMES,
    PYTORCH_MOMENTUM,
    LayerRule,
    SyncBatchNormalizationOptions,
)

_TABLE = "layer"
_PATTERN = "pattern"


def read_options_file(file: str | os.PathLike[str]) -> tuple[LayerRule, ...]:
    """Read `[[layer]]` tables, each with a `pattern` and options.

    Raises:
        UsageError: naming the file, the table and the cause.
    """
    path = Path(file)
    try:
        content = parse_toml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read: {error.strerror or error}; give a .toml file"
        ) from error
    except ValueError as error:
        raise UsageError(f"{path}: no TOML file ({error}); see docs/parameters.md") from error
    tables = content.pop(_TABLE, None)
    if content or not isinstance(tables, list) or not tables:
        odd = f"'{next(iter(content))}' is unknown" if content else "there is none"
        raise UsageError(f"{path}: {odd}; write tables [[{_TABLE}]] with '{_PATTERN}' and options")
    return tuple(
        _rule(table, f"{path}: [[{_TABLE}]] number {number}")
        for number, table in enumerate(tables, start=1)
    )


def options_from(given: Mapping[str, Any]) -> SyncBatchNormalizationOptions:
    """Make options of names and values; `pytorch_momentum` is one minus `momentum`.

    Raises:
        UsageError: if a name is unknown or a value is out of range.
    """
    values = {name: value for name, value in given.items() if value is not None}
    known = [*OPTION_NAMES, PYTORCH_MOMENTUM]
    for name in values:
        if name not in known:
            near = nearest_name(name, known)
            hint = f"did you mean '{near}'?" if near else f"known are {', '.join(known)}"
            raise UsageError(f"unknown option '{name}'; {hint}")
    return SyncBatchNormalizationOptions(**values)


def _rule(table: Any, where: str) -> LayerRule:
    if not isinstance(table, Mapping) or not isinstance(table.get(_PATTERN), str):
        raise UsageError(f"{where}: '{_PATTERN}' is missing; give a regular expression")
    try:
        options = options_from({key: item for key, item in table.items() if key != _PATTERN})
        return LayerRule(pattern=table[_PATTERN], options=options)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
