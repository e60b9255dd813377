from __future__ import annotations

import math
from typing import Any

import pytest

from syncbn_convert.errors import UsageError
from syncbn_convert.options.schedules import Schedule


def rates(schedule: Schedule, steps: int, per_epoch: int) -> list[float]:
    return [schedule.at(step, step // per_epoch, steps) for step in range(steps)]


def test_constant() -> None:
    assert rates(Schedule(learning_rate=0.5), 4, 2) == [0.5] * 4


def test_warmup_rises_in_equal_parts() -> None:
    found = rates(Schedule(learning_rate=1.0, warmup=3), 6, 2)
    assert found == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_cosine_is_half_a_wave_after_the_warmup() -> None:
    found = rates(Schedule(learning_rate=2.0, kind="cosine", warmup=2), 10, 5)
    wave = [1 + math.cos(math.pi * step / 8) for step in range(8)]
    assert found == pytest.approx([2 / 3, 4 / 3, *wave])


def test_step_falls_at_epochs() -> None:
    schedule = Schedule(learning_rate=1.0, kind="step", milestones=(1, 3), factor=0.5)
    assert rates(schedule, 8, 2) == [1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate": -1.0}, "learning rate -1"),
        ({"learning_rate": float("inf")}, "learning rate inf"),
        ({"kind": "poly"}, "choose constant, cosine or step"),
        ({"kind": "step"}, "needs at least one"),
        ({"milestones": (1,)}, "belong to the schedule 'step'"),
        ({"kind": "step", "milestones": (3, 1)}, "rising epochs"),
        ({"kind": "step", "milestones": (0,)}, "rising epochs"),
        ({"kind": "step", "milestones": (1,), "factor": 2.0}, "at most 1"),
        ({"warmup": -1}, "from 0 up"),
    ],
)
def test_fields_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Schedule(**{"learning_rate": 0.1, **fields})
