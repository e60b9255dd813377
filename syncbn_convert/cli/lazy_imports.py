"""Modules that most commands never use, loaded when they are first used."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_LAZY = frozenset(["sympy", "onnx_ir._symbolic_shapes"])
"""onnx_ir calculates with symbolic sizes by sympy, which takes longer to load than all the rest."""


class _LazyFinder:
    """Finds the modules of `_LAZY` as Python's own finder does, but lets them load late."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _LAZY:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


def install() -> None:
    """Load those modules late from now on; has no effect on what is loaded already."""
    if _LazyFinder not in sys.meta_path:
        sys.meta_path.insert(0, _LazyFinder)
