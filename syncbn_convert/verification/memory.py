"""The memory that a comparison may take: a model of a few bytes can ask for any amount."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from syncbn_convert.errors import VerificationError
from syncbn_convert.files import data_names

BASE_BYTES = 2 << 30
"""For a model without weights."""
PER_WEIGHT_BYTE = 8
"""Both models and their float64 twins hold them."""


def budget(models: Iterable[Path], gibibytes: float | None) -> int:
    """Return how many bytes a comparison of these files may take.

    Args:
        models: The files.
        gibibytes: What the user gave; None derives it from the size of the weights.
    """
    if gibibytes is not None:
        return int(gibibytes * (1 << 30))
    return BASE_BYTES + PER_WEIGHT_BYTE * max(map(data_names.total_bytes, models), default=0)


def limit(nbytes: int) -> None:
    """Let the system refuse this process more memory than that, where it can."""
    try:
        import resource
    except ImportError:
        return
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard != resource.RLIM_INFINITY:
        nbytes = min(nbytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (nbytes, hard))


def exceeded(model: Path | str, nbytes: int) -> VerificationError:
    """Return the error of a process that was refused more."""
    return VerificationError(
        f"{model}: more than {nbytes / (1 << 30):.1f} GiB would be needed to run it",
        cures=[
            "give smaller sizes with --input-shape",
            "give more with --verify-memory",
            "pass --no-verify",
        ],
    )
