"""How moving statistics are estimated on data."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from cyclopts import Parameter

from syncbn_convert.errors import UsageError
from syncbn_convert.options import groups


@Parameter(name="*", group=groups.STATISTICS)
@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """How statistics are estimated.

    Attributes:
        method: `precise`: population statistics of all samples seen. `moving`: the exponential
            average with each node's momentum, as in training.
        batch_size: Samples in one global batch, over all replicas.
        batches: Number of batches to count; by default all.
        warmup: Number of batches before those. `precise` leaves them out; `moving` starts from
            their precise statistics instead of the model's old ones.
    """

    method: Literal["precise", "moving"] = "precise"
    batch_size: Annotated[int, Parameter(metavar="N")] = 32
    batches: Annotated[int | None, Parameter(metavar="N")] = None
    warmup: Annotated[int, Parameter(metavar="N")] = 0

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if self.method not in ("precise", "moving"):
            raise UsageError(f"method '{self.method}': choose precise or moving")
        if (
            self.batch_size < 1
            or self.warmup < 0
            or (self.batches is not None and self.batches < 1)
        ):
            raise UsageError(
                f"batch size {self.batch_size}, batches {self.batches}, warmup {self.warmup}: give "
                "a batch size and a number of batches of at least 1, and a warmup of at least 0"
            )
