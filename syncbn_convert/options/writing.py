"""Where results go."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from syncbn_convert.errors import UsageError
from syncbn_convert.options import groups

_OUTPUT = Parameter(name=["--output", "-o"], metavar="FILE")
_SWITCH = Parameter(negative=())


@Parameter(name="*", group=groups.OUTPUT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where a result goes.

    Attributes:
        output: Where to write the result; by default beside MODEL.
        force: Write over an existing file, MODEL included.
    """

    output: Annotated[Path | None, _OUTPUT] = None
    force: Annotated[bool, _SWITCH] = False

    def __post_init__(self) -> None:
        """Refuse a path that looks like a flag."""
        _check_paths(self.output)


@Parameter(name="*", group=groups.OUTPUT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class WritingOptions(OutputOptions):
    """Where the result of a rewrite goes, and how.

    Attributes:
        save_as_external_data: Write the weights into a file of their own.
        dry_run: Say what would change, node by node; write nothing.
    """

    save_as_external_data: Annotated[bool, _SWITCH] = False
    dry_run: Annotated[bool, _SWITCH] = False


@Parameter(name="*", group=groups.OUTPUT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationOutput(OutputOptions):
    """Where a calibrated model and its statistics go.

    Attributes:
        output: Where to write the model.
        statistics_out: Where to write the statistics alone (.safetensors).
    """

    statistics_out: Annotated[Path | None, Parameter(metavar="FILE")] = None

    def __post_init__(self) -> None:
        """Refuse paths that look like flags."""
        _check_paths(self.output, self.statistics_out)


@Parameter(name="*", group=groups.OUTPUT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class RequiredOutput:
    """Where a result goes that has no place by default.

    Attributes:
        output: Where to write the result; `step` makes a folder.
        force: Write over existing files, MODEL included.
    """

    output: Annotated[Path, _OUTPUT]
    force: Annotated[bool, _SWITCH] = False

    def __post_init__(self) -> None:
        """Refuse a path that looks like a flag."""
        _check_paths(self.output)


def _check_paths(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and str(path).startswith("-"):
            raise UsageError(f"'{path}' looks like a flag; write ./{path} if it is a file")
