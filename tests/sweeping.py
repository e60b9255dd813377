"""Parameters that only the sweep takes."""

from __future__ import annotations

from typing import Any

import pytest


def swept(*values: Any) -> Any:
    """Return a set of parameters for `pytest -m sweep` alone."""
    return pytest.param(*values, marks=pytest.mark.sweep)
