"""Which engine connects the replicas."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping

from syncbn_convert.errors import UsageError
from syncbn_convert.options.replicas import AUTO, DEFAULT_TIMEOUT, ENGINES
from syncbn_convert.runtime.communicator import Communicator


def engine_in_use(engine: str, replicas: int, environment: Mapping[str, str] = os.environ) -> str:
    """Say which engine `auto` means here.

    Args:
        engine: What the user asked for.
        replicas: Number of replicas in this process.
        environment: Where mpirun and torchrun leave their variables.

    Raises:
        UsageError: if the engine and the number of replicas contradict each other.
    """
    chosen = _automatic(replicas, environment) if engine == AUTO else engine
    if replicas > 1 and not ENGINES[chosen].threads:
        raise UsageError(
            f"--replicas {replicas} asks for threads in one process, but the {chosen} engine runs "
            "one replica a process; leave --replicas out, or choose --engine threads"
        )
    return chosen


def _automatic(replicas: int, environment: Mapping[str, str]) -> str:
    for name, engine in ENGINES.items():
        if any(variable in environment for variable in engine.variables):
            return name
    return "threads" if replicas > 1 else "local"


def open_communicator(engine: str, timeout: float = DEFAULT_TIMEOUT) -> Communicator:
    """Connect this process as one replica; threads have communicators of their own.

    Raises:
        UsageError: if what the engine needs is not installed or not running.
    """
    module, _, name = ENGINES[engine].communicator.partition(":")
    made: Communicator = getattr(importlib.import_module(module), name)(timeout=timeout)
    return made
