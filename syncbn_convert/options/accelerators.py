"""How the xla engine computes, and on which hosts."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal, get_args

from cyclopts import Parameter

from syncbn_convert.errors import UsageError
from syncbn_convert.options import groups

PlatformName = Literal["auto", "cpu", "gpu", "tpu"]
PrecisionName = Literal["float32", "tf32", "bfloat16"]


@Parameter(name="*", group=groups.ACCELERATORS)
@dataclasses.dataclass(frozen=True, kw_only=True)
class AcceleratorOptions:
    """How the xla engine computes, and on which hosts.

    Attributes:
        platform: Devices of the xla engine; `auto` takes the best that JAX sees.
        precision: Of products on the xla engine: `float32`; `tf32`, with factors of 10 bits, on
            devices that have it; or `bfloat16`, with weights and statistics in float32.
        deterministic: Let the xla engine make the same bits in every run.
        coordinator: Where the hosts of the xla engine meet, the first of them.
        hosts: Number of hosts, one process each; mpirun, srun and torchrun say it by themselves.
        host_id: Number of this host, from 0.
    """

    platform: PlatformName = "auto"
    precision: PrecisionName = "float32"
    deterministic: Annotated[bool, Parameter(negative=())] = False
    coordinator: Annotated[str | None, Parameter(metavar="HOST:PORT")] = None
    hosts: Annotated[int | None, Parameter(metavar="N")] = None
    host_id: Annotated[int | None, Parameter(metavar="I")] = None

    def __post_init__(self) -> None:
        """Refuse choices that do not exist, and hosts that are said in part."""
        if self.platform not in get_args(PlatformName):
            raise UsageError(f"platform '{self.platform}': choose auto, cpu, gpu or tpu")
        if self.precision not in get_args(PrecisionName):
            raise UsageError(f"precision '{self.precision}': choose float32, tf32 or bfloat16")
        given = (self.coordinator, self.hosts, self.host_id)
        if any(value is not None for value in given) and None in given:
            raise UsageError(
                "--coordinator, --hosts and --host-id belong together; give all three, or none"
            )
        if self.coordinator is not None and not _is_address(self.coordinator):
            raise UsageError(f"coordinator '{self.coordinator}': give HOST:PORT")
        if self.hosts is not None and not 0 <= (self.host_id or 0) < self.hosts:
            raise UsageError(
                f"host {self.host_id} of {self.hosts}: give a number of hosts from 1 up, and the "
                "number of this one from 0"
            )


def _is_address(text: str) -> bool:
    host, colon, port = text.rpartition(":")
    return bool(host and colon and port.isdigit() and 0 < int(port) < 1 << 16)
