"""What a caller may choose about a comparison."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from syncbn_convert.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """How two models are compared.

    Attributes:
        rtol: Replaces the derived tolerance: allowed |candidate - reference| relative to the
            largest |reference| of the output in the run. With only `atol` given it counts 0.
        atol: Replaces the derived tolerance: absolute part, added to the relative one. With only
            `rtol` given it counts 0.
        seed: First seed of the random inputs.
        seeds: Number of random inputs for each size.
        input_shapes: Shapes of inputs by name; they fix the dynamic dimensions they name.
        data: An `.npz` file, or a folder of them, with arrays named as the inputs (first axis:
            samples); used beside the random inputs. Further arrays are ignored.
        timeout: Seconds after which the comparison is given up.
    """

    rtol: float | None = None
    atol: float | None = None
    seed: int = 0
    seeds: int = 2
    input_shapes: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    data: Path | None = None
    timeout: float = 600.0

    def __post_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise UsageError(f"{name} is {value}: give a finite number that is not negative")
        if self.seed < 0 or self.seeds < 1 or not self.timeout > 0:
            raise UsageError(
                f"seed {self.seed}, seeds {self.seeds}, timeout {self.timeout}: "
                "give a seed >= 0, seeds >= 1 and a timeout > 0"
            )
        for name, shape in self.input_shapes.items():
            if any(size < 1 for size in shape):
                raise UsageError(f"input '{name}': shape {list(shape)} has a size below 1")

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON types."""
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "input_shapes": {name: list(shape) for name, shape in self.input_shapes.items()},
            "data": None if self.data is None else str(self.data),
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> VerifyOptions:
        """Return the options that `to_json` was called on."""
        data = fields["data"]
        return cls(**{**fields, "data": None if data is None else Path(data)})
