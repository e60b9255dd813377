"""A child process with four CPU devices, which the tests of a worker share."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import pytest

DEVICES = 4
Result = TypeVar("Result")
InChild = Callable[..., Any]
_FLAGS = (
    f"--xla_force_host_platform_device_count={DEVICES} "
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)


def _begin(cache: str) -> None:
    """Set what JAX reads when it looks for devices; nothing has imported it yet."""
    os.environ["XLA_FLAGS"] = _FLAGS
    os.environ["XDG_CACHE_HOME"] = cache


@pytest.fixture(scope="session")
def in_child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InChild]:
    """Call a function of a module in the child; it returns or raises here."""
    cache = str(tmp_path_factory.mktemp("cache"))
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawning, _begin, (cache,)) as pool:

        def call(function: Callable[..., Result], *arguments: Any) -> Result:
            return pool.submit(function, *arguments).result()

        yield call
