"""Learning rates by step."""

from __future__ import annotations

import bisect
import dataclasses
import math
from typing import Annotated, Any, Literal, get_args

from cyclopts import Parameter

from syncbn_convert.errors import UsageError
from syncbn_convert.options import groups

ScheduleName = Literal["constant", "cosine", "step"]


@Parameter(name="*", group=groups.LEARNING_RATE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """A learning rate for every step, counted from 0.

    Attributes:
        learning_rate: The highest one.
        kind: `constant`; `cosine`, which falls to 0 along half a wave at the last step, as Keras'
            CosineDecay does; or `step`, which falls by `factor` at each of `milestones`.
        warmup: Steps at the beginning in which it rises in equal parts to the highest; the cosine
            begins after them.
        milestones: Of the schedule step: epochs done before the rate falls (repeatable).
        factor: Of the schedule step: what remains at each milestone.
    """

    learning_rate: Annotated[float, Parameter(metavar="X")]
    kind: Annotated[ScheduleName, Parameter(name="--schedule")] = "constant"
    warmup: Annotated[int, Parameter(metavar="N")] = 0
    milestones: Annotated[tuple[int, ...], Parameter(name="--milestone", metavar="EPOCH")] = ()
    factor: Annotated[float, Parameter(metavar="X")] = 0.1

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UsageError(f"learning rate {self.learning_rate:g}: give a number above 0")
        if self.kind not in get_args(ScheduleName):
            raise UsageError(f"schedule '{self.kind}': choose constant, cosine or step")
        if self.warmup < 0:
            raise UsageError(f"warmup {self.warmup}: give a number of steps from 0 up")
        if (self.kind == "step") != bool(self.milestones):
            raise UsageError("milestones belong to the schedule 'step', which needs at least one")
        if list(self.milestones) != sorted(set(self.milestones)) or any(
            epoch < 1 for epoch in self.milestones
        ):
            raise UsageError(f"milestones {self.milestones}: give rising epochs from 1 up")
        if not 0 < self.factor <= 1:
            raise UsageError(f"factor {self.factor:g}: give a number above 0, at most 1")

    def at(self, step: int, epoch: int, steps: int | None) -> float:
        """Return the learning rate of a step.

        Args:
            step: Number of the step, from 0.
            epoch: Number of its epoch, from 0.
            steps: Number of steps in all; only the cosine needs it.
        """
        if step < self.warmup:
            return self.learning_rate * (step + 1) / (self.warmup + 1)
        if self.kind == "cosine":
            assert steps is not None
            length = max(steps - self.warmup, 1)
            share = min((step - self.warmup) / length, 1.0)
            return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))
        passed = bisect.bisect_right(self.milestones, epoch)
        return self.learning_rate * self.factor**passed

    @property
    def needs_length(self) -> bool:
        """Whether it depends on the number of steps in all."""
        return self.kind == "cosine"

    def describe(self) -> dict[str, Any]:
        """Return the fields, as JSON has them."""
        return dataclasses.asdict(self)
