"""What a command has read, for finding out whose fault an unexpected error is."""

from __future__ import annotations

import os

_read: dict[str, None] = {}


def note_read(path: str | os.PathLike[str]) -> None:
    """Remember that a command read a model file."""
    _read[os.fspath(path)] = None


def forget() -> None:
    """Forget what was read."""
    _read.clear()


def suspects() -> list[str]:
    """Return the files that were read, in order."""
    return list(_read)
