"""Which engine connects the replicas."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from syncbn_convert.errors import UsageError
from syncbn_convert.runtime.communicator import DEFAULT_TIMEOUT, Communicator, LocalCommunicator

Engine = Literal["auto", "local", "threads", "mpi", "torch"]

_MPI_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK")
_TORCHRUN_VARIABLES = ("TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE")


def engine_in_use(
    engine: Engine, replicas: int, environment: Mapping[str, str] = os.environ
) -> Engine:
    """Say which engine `auto` means here.

    Args:
        engine: What the user asked for.
        replicas: Number of replicas in this process.
        environment: Where mpirun and torchrun leave their variables.

    Raises:
        UsageError: if the engine and the number of replicas contradict each other.
    """
    chosen = _automatic(replicas, environment) if engine == "auto" else engine
    if replicas > 1 and chosen != "threads":
        raise UsageError(
            f"--replicas {replicas} asks for threads in one process, but the {chosen} engine runs "
            "one replica a process; leave --replicas out, or choose --engine threads"
        )
    return chosen


def _automatic(replicas: int, environment: Mapping[str, str]) -> Engine:
    if any(name in environment for name in _MPI_VARIABLES):
        return "mpi"
    if any(name in environment for name in _TORCHRUN_VARIABLES):
        return "torch"
    return "threads" if replicas > 1 else "local"


def open_communicator(engine: Engine, timeout: float = DEFAULT_TIMEOUT) -> Communicator:
    """Connect this process as one replica; threads have communicators of their own.

    Raises:
        UsageError: if what the engine needs is not installed or not running.
    """
    if engine == "mpi":
        from syncbn_convert.runtime.mpi import MpiCommunicator

        return MpiCommunicator(timeout=timeout)
    if engine == "torch":
        from syncbn_convert.runtime.torch_distributed import TorchCommunicator

        return TorchCommunicator(timeout=timeout)
    return LocalCommunicator()
