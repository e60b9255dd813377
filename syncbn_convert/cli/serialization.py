"""Reports as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncbn_convert.cli import terminal
from syncbn_convert.cli.flags import STANDARD_OUTPUT
from syncbn_convert.errors import UsageError
from syncbn_convert.reports import (
    CalibrateReport,
    InspectReport,
    KerasReport,
    RewriteReport,
    VerifyReport,
)
from syncbn_convert.training.reports import StepReport, TrainReport

if TYPE_CHECKING:
    from syncbn_convert.form.statistics import Statistics


def rewrite_to_dict(report: RewriteReport, model: Path, output: Path | None) -> dict[str, Any]:
    """Return what `convert` and `fold` write as JSON."""
    return {
        "command": report.command,
        "input": str(model),
        "output": None if output is None else str(output),
        "found": report.found,
        "converted": report.converted,
        "skipped": [{"node": record.node, "reason": record.reason} for record in report.skipped],
        "all_reduces": report.all_reduces,
        "verified": report.verified,
        "max_relative_error": report.max_relative_error,
        "tolerance": report.tolerance,
        "seconds": report.seconds,
        "notes": report.notes,
        "records": [dataclasses.asdict(record) for record in report.records],
    }


def calibration_to_dict(
    report: CalibrateReport, model: Path, output: Path | None, statistics: Path | None
) -> dict[str, Any]:
    """Return what `calibrate` writes as JSON."""
    return {
        "command": "calibrate",
        "input": str(model),
        "output": None if output is None else str(output),
        "statistics": None if statistics is None else str(statistics),
        **dataclasses.asdict(report),
    }


def step_to_dict(report: StepReport, model: Path, output: Path) -> dict[str, Any]:
    """Return what `step` writes as JSON."""
    return {
        "command": "step",
        "input": str(model),
        "output": str(output),
        **dataclasses.asdict(report),
    }


def training_to_dict(report: TrainReport, model: Path, output: Path) -> dict[str, Any]:
    """Return what `train` writes as JSON."""
    return {
        "command": "train",
        "input": str(model),
        "output": str(output),
        **dataclasses.asdict(report),
    }


def statistics_to_dict(found: Statistics, model: Path, output: Path) -> dict[str, Any]:
    """Return what `statistics` writes as JSON."""
    return {
        "command": "statistics",
        "input": str(model),
        "output": str(output),
        "layers_digest": found.layers_digest,
        "statistics": [
            {
                "name": name,
                "channels": values.size,
                "dtype": str(values.dtype),
                "min": float(values.min()),
                "max": float(values.max()),
            }
            for name, values in found.tensors.items()
        ],
    }


def keras_to_dict(report: KerasReport, model: Path, source: Path, output: Path) -> dict[str, Any]:
    """Return what `statistics --to-keras` writes as JSON."""
    return {
        "command": "statistics",
        "input": str(model),
        "source": str(source),
        "output": str(output),
        **dataclasses.asdict(report),
    }


def report_to_dict(report: InspectReport | VerifyReport) -> dict[str, Any]:
    """Return what `inspect` and `verify` write as JSON."""
    content = dataclasses.asdict(report)
    for output in content.get("outputs", ()):
        del output["histogram"]  # for pictures
    return content


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
    try:
        Path(target).write_text(text, encoding="utf-8")
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
