"""Where results go."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, TypeAlias

from cyclopts import Parameter

from syncbn_convert.errors import UsageError
from syncbn_convert.options import groups

_OUTPUT = Parameter(
    name=["--output", "-o"],
    metavar="FILE",
    group=groups.OUTPUT,
    help="Where to write the result; by default beside MODEL.",
)

Output: TypeAlias = Annotated[Path | None, _OUTPUT]
RequiredOutput: TypeAlias = Annotated[Path, _OUTPUT]


@Parameter(name="*", group=groups.OUTPUT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Whether existing files may be replaced.

    Attributes:
        force: Write over an existing file, MODEL included.
    """

    force: Annotated[bool, Parameter(negative=())] = False


@Parameter(name="*", group=groups.OUTPUT)
@dataclasses.dataclass(frozen=True, kw_only=True)
class WritingOptions(OutputOptions):
    """Where the result of a rewrite goes.

    Attributes:
        output: Where to write the result; by default beside MODEL.
        save_as_external_data: Write the weights into a file of their own.
        dry_run: Say what would change, node by node; write nothing.
    """

    output: Output = None
    save_as_external_data: Annotated[bool, Parameter(negative=())] = False
    dry_run: Annotated[bool, Parameter(negative=())] = False

    def __post_init__(self) -> None:
        """Refuse a path that looks like a flag."""
        check_path(self.output)


def check_path(path: Path | None) -> None:
    """Refuse a path that looks like a flag.

    Raises:
        UsageError: saying how to write it if it is a file.
    """
    if path is not None and str(path).startswith("-"):
        raise UsageError(f"'{path}' looks like a flag; write ./{path} if it is a file")
