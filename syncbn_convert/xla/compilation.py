"""Compiling, with results kept on disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax


def folder() -> Path:
    """Return where compiled programs are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "syncbn-convert" / "xla"


def compiled(jitted: Any, arguments: tuple[Any, ...]) -> Any:
    """Return a jitted function compiled for arguments, from disk if it has been compiled before."""
    with _kept_on_disk():
        return jitted.lower(*arguments).compile()


@contextlib.contextmanager
def _kept_on_disk() -> Iterator[None]:
    """Let JAX keep what it compiles, and leave its configuration as it was."""
    configured: Any = jax.config
    if configured.jax_compilation_cache_dir is not None:  # the user's own
        yield
        return
    from jax.experimental.compilation_cache import compilation_cache

    place = folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:  # no home
        yield
        return
    jax.config.update("jax_compilation_cache_dir", str(place))
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()
