"""Which engine connects the replicas."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from syncbn_convert.errors import UsageError
from syncbn_convert.options.replicas import AUTO, DEFAULT_TIMEOUT, ENGINES, ReplicaOptions
from syncbn_convert.runtime.communicator import Communicator


def engine_in_use(
    engine: str, replicas: int | None, environment: Mapping[str, str] = os.environ
) -> str:
    """Say which engine `auto` means here.

    Args:
        engine: What the user asked for.
        replicas: Number of replicas in this process; None if the user did not say.
        environment: Where mpirun and torchrun leave their variables.

    Raises:
        UsageError: if the engine and the number of replicas contradict each other.
    """
    chosen = _automatic(replicas or 1, environment) if engine == AUTO else engine
    several = replicas is not None and replicas > 1
    if several and not (ENGINES[chosen].threads or ENGINES[chosen].devices):
        raise UsageError(
            f"--replicas {replicas} asks for threads in one process, but the {chosen} engine runs "
            "one replica a process; leave --replicas out, or choose --engine threads"
        )
    return chosen


def _automatic(replicas: int, environment: Mapping[str, str]) -> str:
    if _sees_accelerator():
        return "xla"
    for name, engine in ENGINES.items():
        if any(variable in environment for variable in engine.variables):
            return name
    return "threads" if replicas > 1 else "local"


def _sees_accelerator() -> bool:
    """Whether JAX is there, and sees a device that is no CPU.

    JAX is imported only where something is installed that would drive one: that takes seconds.
    """
    plugins = ("jax_plugins", "libtpu")
    if any(importlib.util.find_spec(name) is None for name in ("jax", "jaxlib")):
        return False
    if all(importlib.util.find_spec(name) is None for name in plugins):
        return False
    import jax

    try:
        return any(device.platform != "cpu" for device in jax.devices())
    except RuntimeError:  # a driver that does not work
        return False


def open_communicator(
    engine: str, timeout: float = DEFAULT_TIMEOUT, options: ReplicaOptions | None = None
) -> Communicator:
    """Connect this process as one replica; threads have communicators of their own.

    Args:
        engine: One of `ENGINES`.
        timeout: Seconds that a replica waits in one collective.
        options: Of an engine whose replicas are devices; by default all devices of this host.

    Raises:
        UsageError: if what the engine needs is not installed or not running.
    """
    kind = imported(ENGINES[engine].communicator)
    if ENGINES[engine].devices:
        given = options or ReplicaOptions(engine=engine, timeout=timeout)
        made: Communicator = kind(timeout=timeout, options=given)
    else:
        made = kind(timeout=timeout)
    return made


def imported(place: str) -> Any:
    """Return what `module:name` names."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
