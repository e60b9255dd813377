"""Names of files, which libraries take as UTF-8."""

from __future__ import annotations


def is_utf8(name: str) -> bool:
    """Whether a name can be handed to libraries: no byte of it is one that UTF-8 does not have."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)
