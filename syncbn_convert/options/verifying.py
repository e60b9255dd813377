"""What a caller may choose about a comparison."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias

from cyclopts import Parameter

from syncbn_convert.errors import UsageError
from syncbn_convert.options import groups

if TYPE_CHECKING:
    from cyclopts import Token

_SHOWN = 60
_DIMENSIONS = re.compile(r"[1-9][0-9]{0,17}(?:[,x][1-9][0-9]{0,17})*")


def parse_input_shapes(values: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Read `NAME:DIMS` values, split at the last colon because names may hold colons.

    Args:
        values: Values of `--input-shape`, DIMS like `2,3,224,224` or `2x3x224x224`.

    Returns:
        Shape per input name.

    Raises:
        UsageError: A value is not of that form, or a name comes twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for value in values:
        name, _, dimensions = value.rpartition(":")
        if not name or not _DIMENSIONS.fullmatch(dimensions):
            raise UsageError(
                f"--input-shape '{value[:_SHOWN]}' is not NAME:DIMS with positive sizes, such as "
                "x:2,3,224,224"
            )
        if name in shapes:
            raise UsageError(f"--input-shape '{name}' is given twice; give each input one shape")
        shapes[name] = tuple(int(size) for size in re.split("[,x]", dimensions))
    return shapes


def _convert_input_shapes(kind: Any, tokens: Sequence[Token]) -> dict[str, tuple[int, ...]]:
    del kind
    return parse_input_shapes([token.value for token in tokens])


InputShapes: TypeAlias = Annotated[
    Mapping[str, Sequence[int]],
    Parameter(
        name="--input-shape",
        metavar="NAME:DIMS",
        converter=_convert_input_shapes,
        n_tokens=-1,
        accepts_keys=False,
    ),
]
_MOST_GIB = 1 << 20
_NOT_A_FLAG = Parameter(parse=False)


@Parameter(name="*", group=groups.VERIFICATION)
@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """How two models are compared.

    Attributes:
        rtol: Replaces the derived tolerance: allowed |candidate - reference| relative to the
            largest |reference| of the output in the run. With only `atol` given it counts 0.
        atol: Replaces the derived tolerance: absolute part, added to the relative one. With only
            `rtol` given it counts 0.
        input_shapes: Shapes of inputs by name, such as x:2,3,224,224 (repeatable); they fix the
            dynamic dimensions they name.
        seed: First seed of what is random: generated inputs, random initializers, the
            order of samples.
        seeds: Number of random inputs of the first size; others get one.
        data: An `.npz` file, or a folder of them, with arrays named as the inputs (first axis:
            samples); used beside the random inputs. Further arrays are ignored.
        timeout: Seconds after which the comparison is given up.
        memory: GiB that the comparison may take; by default 2 and 8 times the weights.
    """

    cure_flags: ClassVar[frozenset[str]] = frozenset(
        ["--atol", "--data", "--input-shape", "--rtol", "--seed", "--verify-memory"]
    )
    """What messages may advise."""

    rtol: Annotated[float | None, Parameter(metavar="X")] = None
    atol: Annotated[float | None, Parameter(metavar="X")] = None
    input_shapes: InputShapes = dataclasses.field(default_factory=dict)
    seed: Annotated[int, Parameter(metavar="N")] = 0
    seeds: Annotated[int, _NOT_A_FLAG] = 2
    data: Annotated[Path | None, _NOT_A_FLAG] = None
    timeout: Annotated[float, _NOT_A_FLAG] = 600.0
    memory: Annotated[float | None, Parameter(name="--verify-memory", metavar="GIB")] = None

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise UsageError(f"{name} is {value}: give a finite number that is not negative")
        if self.seed < 0 or self.seeds < 1 or not self.timeout > 0:
            raise UsageError(
                f"seed {self.seed}, seeds {self.seeds}, timeout {self.timeout}: "
                "give a seed >= 0, seeds >= 1 and a timeout > 0"
            )
        if self.memory is not None and not 0 < self.memory < _MOST_GIB:
            raise UsageError(f"verify memory {self.memory}: give GiB above 0")
        for name, shape in self.input_shapes.items():
            if any(size < 1 for size in shape):
                raise UsageError(f"input '{name}': shape {list(shape)} has a size below 1")

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON types."""
        return {
            **{field.name: getattr(self, field.name) for field in _FIELDS},
            "input_shapes": {name: list(shape) for name, shape in self.input_shapes.items()},
            "data": None if self.data is None else str(self.data),
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> VerifyOptions:
        """Return the options that `to_json` was called on."""
        data = fields["data"]
        return cls(**{**fields, "data": None if data is None else Path(data)})


_FIELDS = dataclasses.fields(VerifyOptions)


@Parameter(name="*", group=groups.VERIFICATION)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Verifying(VerifyOptions):
    """Whether and how a result is verified.

    Attributes:
        verify: Whether to run the result and compare it.
    """

    cure_flags: ClassVar[frozenset[str]] = VerifyOptions.cure_flags - {"--data"} | {"--no-verify"}

    verify: bool = True

    @classmethod
    def given(cls, verify: bool, options: VerifyOptions) -> Verifying:
        """Return both in one."""
        return cls(verify=verify, **{f.name: getattr(options, f.name) for f in _FIELDS})
