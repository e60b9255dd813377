"""Samples of operators that are flat almost everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.gradients.cases.registry import case
from tests.gradients.sample import Draw, Sample

_STEPS: dict[str, Callable[[Any], Any]] = {
    "Ceil": torch.ceil,
    "Floor": torch.floor,
    "Round": torch.round,
    "Sign": torch.sign,
    "Hardmax": lambda x: torch.where(x == x.amax(-1, keepdim=True), 1.0, 0.0).double(),
}


@case(*_STEPS)
def steps(op_type: str, draw: Draw) -> Sample:
    kinks = [half / 2 for half in range(-6, 7)]
    x = draw.values(draw.shape(2), -2.0, 2.0, kinks=kinks)
    if op_type == "Hardmax":
        x = draw.distinct(x.shape)
    return Sample(
        op_type=op_type, inputs=[x], oracle=_STEPS[op_type], reference=op_type == "Hardmax"
    )
