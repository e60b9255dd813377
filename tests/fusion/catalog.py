"""All hostile cases, by name."""

from __future__ import annotations

from tests.fusion import more_cases
from tests.fusion.cases import MUST_BE_REFUSED, Case, case, names

__all__ = ["MUST_BE_REFUSED", "Case", "case", "more_cases", "names"]
