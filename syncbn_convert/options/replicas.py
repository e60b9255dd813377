"""Where and on how many replicas to run, and what may connect them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Annotated

from cyclopts import Parameter

from syncbn_convert.errors import UsageError
from syncbn_convert.options import groups

DEFAULT_TIMEOUT = 300.0
"""Seconds that a replica waits in one collective."""
_LONGEST_TIMEOUT = 1e6
"""Seconds; what the engines and the system count with ends somewhere."""
AUTO = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """What connects replicas.

    Attributes:
        communicator: Where its communicator is, as `module:class`; it is made with `timeout`.
        threads: Whether replicas are threads of one process, not processes.
        variables: Environment variables by which a launcher is known that starts it.
    """

    communicator: str
    threads: bool = False
    variables: tuple[str, ...] = ()


ENGINES: Mapping[str, Engine] = {
    "local": Engine(communicator="syncbn_convert.runtime.communicator:LocalCommunicator"),
    "threads": Engine(
        communicator="syncbn_convert.runtime.communicator:LocalCommunicator", threads=True
    ),
    "mpi": Engine(
        communicator="syncbn_convert.runtime.mpi:MpiCommunicator",
        variables=("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"),
    ),
    "torch": Engine(
        communicator="syncbn_convert.runtime.torch_distributed:TorchCommunicator",
        variables=("TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE"),
    ),
}


@Parameter(name="*", group=groups.REPLICAS)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplicaOptions:
    """Where and on how many replicas to run.

    Attributes:
        replicas: Replicas, as threads of this process.
        engine: What connects replicas; `auto` takes what mpirun or torchrun started, else threads.
        threads_per_replica: Threads of ONNX Runtime for each replica; by default they share the
            cores.
        timeout: Seconds that a replica waits in one collective.
    """

    replicas: Annotated[int, Parameter(metavar="N")] = 1
    engine: Annotated[str, Parameter(choices=(AUTO, *ENGINES))] = AUTO
    threads_per_replica: Annotated[int | None, Parameter(metavar="N")] = None
    timeout: Annotated[float, Parameter(name="--collective-timeout", metavar="SECONDS")] = (
        DEFAULT_TIMEOUT
    )

    def __post_init__(self) -> None:
        """Refuse unknown engines and numbers that make no sense."""
        if self.engine not in (AUTO, *ENGINES):
            raise UsageError(f"engine '{self.engine}': choose {', '.join((AUTO, *ENGINES))}")
        threads = self.threads_per_replica
        if (
            self.replicas < 1
            or not 0 < self.timeout <= _LONGEST_TIMEOUT
            or (threads is not None and threads < 1)
        ):
            raise UsageError(
                f"replicas {self.replicas}, threads per replica {threads}, timeout "
                f"{self.timeout:g}: give numbers from 1 up, and a timeout above 0 and up to "
                f"{_LONGEST_TIMEOUT:g}"
            )

    def threads(self, local_replicas: int) -> int:
        """Return the number of threads for each of the replicas on this machine."""
        return self.threads_per_replica or max(1, (os.cpu_count() or 1) // local_replicas)
