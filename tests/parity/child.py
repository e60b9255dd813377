"""Python processes that import TensorFlow, so that the tests do not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_LIMIT = 240.0
_QUIET = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}


def run_module(name: str, *arguments: str | Path) -> None:
    """Run `python -m name`, which has to succeed."""
    child = subprocess.run(
        [sys.executable, "-m", name, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **_QUIET},
        capture_output=True,
        text=True,
        timeout=_LIMIT,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
