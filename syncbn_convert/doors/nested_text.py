"""JSON and TOML whose nesting is bounded before anything is made of it."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

DEEPEST = 200
"""Brackets inside brackets; a Keras model inside a model adds about ten."""

_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_TOML_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""|\'\'\'.*?\'\'\'|"(?:[^"\\\n]|\\.)*+"?|\'[^\'\n]*\'?|#[^\n]*', re.DOTALL
)
_BRACKET = re.compile(r"[\[\]{}]")


def parse_json(text: str | bytes, kind: type | None = None) -> Any:
    """Return what a JSON text says.

    Args:
        text: The text, UTF-8 if bytes.
        kind: Of what it has to be; None is anything.

    Raises:
        ValueError: if it is no JSON, nested more than `DEEPEST` times, or not of `kind`.
    """
    decoded = text.decode("utf-8") if isinstance(text, bytes) else text
    _require_shallow(_JSON_STRING.sub('""', decoded))
    content = json.loads(decoded)
    if kind is not None and not isinstance(content, kind):
        raise ValueError(f"a {type(content).__name__} where a {kind.__name__} belongs")
    return content


def parse_toml(text: str) -> dict[str, Any]:
    """Return what a TOML text says.

    Raises:
        ValueError: if it is no TOML, or nested more than `DEEPEST` times.
    """
    bare = _TOML_STRING.sub('""', text)
    _require_shallow(bare)
    if any(line.count(".") > DEEPEST for line in bare.splitlines()):
        raise ValueError(f"a key of more than {DEEPEST} parts")
    return tomllib.loads(text)


def _require_shallow(text: str) -> None:
    depth = 0
    for bracket in _BRACKET.finditer(text):
        depth += 1 if bracket.group() in "[{" else -1
        if depth > DEEPEST:
            raise ValueError(f"brackets nested more than {DEEPEST} deep")
