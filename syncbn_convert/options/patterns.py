"""Options that are regular expressions, searched in names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, TypeAlias

from cyclopts import Parameter

from syncbn_convert.errors import UsageError

Patterns: TypeAlias = Annotated[tuple[str, ...], Parameter(metavar="REGEX")]


def check_patterns(patterns: Iterable[str]) -> None:
    """Refuse what is not a regular expression.

    Raises:
        UsageError: naming the first.
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(
                f"'{pattern}' is not a regular expression: {error}; escape special characters"
            ) from error


def matches(patterns: Iterable[str], *names: str) -> bool:
    """Whether one of the regular expressions is found in one of `names`."""
    return any(re.search(pattern, name) for pattern in patterns for name in names)
