"""Where and on how many replicas to run, and what may connect them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Annotated

from cyclopts import Parameter

from syncbn_convert.errors import UsageError
from syncbn_convert.options import groups
from syncbn_convert.options.accelerators import AcceleratorOptions

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
        devices: Whether replicas are devices of a process, each of which is a host.
        variables: Environment variables by which a launcher is known that starts it.
        form: What runs a training form, as `module:class`.
        step: What runs a training step, as `module:class`.
    """

    communicator: str
    threads: bool = False
    devices: bool = False
    variables: tuple[str, ...] = ()
    form: str = "syncbn_convert.runtime.session:LoadedForm"
    step: str = "syncbn_convert.training.replica:LoadedStep"


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
    "xla": Engine(
        communicator="syncbn_convert.xla.hosts:HostCommunicator",
        devices=True,
        form="syncbn_convert.xla.device_session:XlaForm",
        step="syncbn_convert.training.xla_step:XlaStep",
    ),
}


@Parameter(name="*", group=groups.REPLICAS)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplicaOptions:
    """Where and on how many replicas to run.

    Attributes:
        replicas: Replicas, as threads of this process (1), or devices of this host (all).
        engine: What connects replicas; `auto` takes xla if JAX sees an accelerator, else what
            mpirun or torchrun started, else threads.
        threads_per_replica: Threads of ONNX Runtime for each replica; by default they share the
            cores.
        timeout: Seconds that a replica waits in one collective.
        accelerators: Of the xla engine.
    """

    replicas: Annotated[int | None, Parameter(metavar="N")] = None
    engine: Annotated[str, Parameter(choices=(AUTO, *ENGINES))] = AUTO
    threads_per_replica: Annotated[int | None, Parameter(metavar="N")] = None
    timeout: Annotated[float, Parameter(name="--collective-timeout", metavar="SECONDS")] = (
        DEFAULT_TIMEOUT
    )
    accelerators: AcceleratorOptions = AcceleratorOptions()

    def __post_init__(self) -> None:
        """Refuse unknown engines and numbers that make no sense."""
        if self.engine not in (AUTO, *ENGINES):
            raise UsageError(f"engine '{self.engine}': choose {', '.join((AUTO, *ENGINES))}")
        threads = self.threads_per_replica
        if (
            self.threads_wanted < 1
            or not 0 < self.timeout <= _LONGEST_TIMEOUT
            or (threads is not None and threads < 1)
        ):
            raise UsageError(
                f"replicas {self.replicas}, threads per replica {threads}, timeout "
                f"{self.timeout:g}: give numbers from 1 up, and a timeout above 0 and up to "
                f"{_LONGEST_TIMEOUT:g}"
            )

    @property
    def threads_wanted(self) -> int:
        """Number of replicas of this process, where they are threads."""
        return 1 if self.replicas is None else self.replicas

    def threads(self, local_replicas: int) -> int:
        """Return the number of threads for each of the replicas on this machine."""
        return self.threads_per_replica or max(1, (os.cpu_count() or 1) // local_replicas)
