"""What of a result is shown, and where."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from syncbn_convert.cli import terminal
from syncbn_convert.errors import UsageError
from syncbn_convert.options import groups

if TYPE_CHECKING:
    from syncbn_convert.commands.run import Result

STANDARD_OUTPUT = "-"
"""What a `--json` without FILE stands for."""


@Parameter(name="*", group=groups.DISPLAY)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Showing:
    """What is shown.

    Attributes:
        json: Write JSON to FILE (only as --json=FILE), or to stdout in place of the table.
        verbose: Log stages and every node to stderr.
        quiet: No table and no progress; errors and --json remain.
    """

    json: Annotated[str | None, Parameter(metavar="[=FILE]")] = None
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], negative=())] = False
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False

    def __post_init__(self) -> None:
        """Refuse a JSON file that is a model: `--json model.onnx` would be one."""
        if self.json == "" or (self.json or "").endswith(".onnx"):
            raise UsageError(
                f"--json '{self.json}' is no JSON file; give --json=FILE.json, or --json"
            )

    @property
    def progress(self) -> bool:
        """Whether to show how far the work has come."""
        return not (self.verbose or self.quiet)


@Parameter(name="*", group=groups.DISPLAY)
@dataclasses.dataclass(frozen=True, kw_only=True)
class PageShowing(Showing):
    """What is shown, a page among it.

    Attributes:
        report: Write what was done as a page with pictures (needs the extra 'report').
    """

    report: Annotated[Path | None, Parameter(metavar="FILE.html")] = None


@Parameter(name="*", group=groups.DISPLAY)
@dataclasses.dataclass(frozen=True, kw_only=True)
class RewriteShowing(PageShowing):
    """What is shown of a rewrite.

    Attributes:
        time_passes: Print the time of each pass and stage to stderr.
    """

    time_passes: Annotated[bool, Parameter(negative=())] = False


def show(result: Result[Any] | None, showing: Showing) -> None:
    """Print the table or the JSON of a result; None, which replicas but the first have, is silent.

    Raises:
        UsageError: The JSON file or standard output cannot be written.
    """
    from syncbn_convert.cli import tables

    if result is None:
        return
    if isinstance(showing, RewriteShowing) and showing.time_passes:
        timings = tables.timing_tables(result.report.timings)
        terminal.tell(terminal.render(sys.stderr, *timings))
    if showing.json is not None:
        write_json(result.to_json(), showing.json)
    if showing.json != STANDARD_OUTPUT and not showing.quiet:
        terminal.print_tables(*tables.tables_of(result))


def write_json(content: dict[str, Any], target: str) -> None:
    """Write `content` as JSON, numbers that JSON does not have as the strings NaN and Infinity.

    Args:
        content: What to write.
        target: A path, or `-` for stdout.

    Raises:
        UsageError: The target cannot be written.
    """
    text = json.dumps(_finite(content), indent=2, allow_nan=False, default=str) + "\n"
    if target == STANDARD_OUTPUT:
        terminal.write(text)
        return
    from syncbn_convert.files import staging

    path = Path(target)
    try:
        if staging.is_special(path):
            path.write_text(text, encoding="utf-8")
            return
        with staging.stage_output(path, force=True) as staged:
            staged.path.write_text(text, encoding="utf-8")
            staged.commit()
    except OSError as error:
        raise UsageError(
            f"{target} cannot be written: {error.strerror}; give --json another file"
        ) from error


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
