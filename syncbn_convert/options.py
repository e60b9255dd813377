"""Options of the rewrites, shared by the Python functions and the command line."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from syncbn_convert.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """How passes are run.

    Attributes:
        print_between_passes: Print the model's text to stderr after each pass that changed it.
    """

    print_between_passes: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What `convert` does.

    Attributes:
        include: Regular expressions searched in node names; only matching nodes are converted.
            Empty means all.
        exclude: Regular expressions; matching nodes are left as they are.
        freeze: Regular expressions; matching nodes stay (or become) inference mode, their moving
            statistics untouched.
        opset: Opset version of the result; None raises it only as far as needed.
        pipeline: How passes are run.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    opset: int | None = None
    pipeline: PipelineOptions = PipelineOptions()

    def __post_init__(self) -> None:
        """Refuse what is not a regular expression."""
        for pattern in (*self.include, *self.exclude, *self.freeze):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UsageError(
                    f"'{pattern}' is not a regular expression: {error}; escape special characters"
                ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldOptions:
    """What `fold` does.

    Attributes:
        opset: Opset version of the result; None leaves it as it is.
        statistics: `.safetensors` file of moving statistics that replace the model's own; the model
            may then also be in inference form. None takes the model's own.
        pipeline: How passes are run.
    """

    opset: int | None = None
    statistics: Path | None = None
    pipeline: PipelineOptions = PipelineOptions()
