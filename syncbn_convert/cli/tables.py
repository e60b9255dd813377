"""Reports as tables that stay readable at 80 columns."""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from syncbn_convert.commands.run import Result
from syncbn_convert.errors import printable
from syncbn_convert.reports import (
    NOT_RUN,
    CalibrateReport,
    InspectReport,
    KerasReport,
    NodeInfo,
    Record,
    Report,
    RewriteReport,
    StatisticsReport,
    VerifyReport,
)
from syncbn_convert.training.results import EpochRecord, StepReport, TrainReport

Files = Mapping[str, Path | None]

MAX_ROWS = 60
"""Rows of a table of nodes before the rest is only counted; nodes left alone are all listed."""

MAX_MOVED_LAYERS = 10
"""Rows of the table of layers that calibration moved most."""

MAX_EPOCHS = 60
"""Rows of the table of epochs."""

_PAST_TENSE = {"convert": "converted", "fold": "folded", "fuse": "fused", "unfuse": "inserted"}
_UNKNOWN = "?"


def tables_of(result: Result[Any]) -> list[RenderableType]:
    """Return what a command prints of its result."""
    return _tables(result.report, result.files)


@functools.singledispatch
def _tables(report: Report, files: Files) -> list[RenderableType]:
    raise TypeError(f"no table for {type(report).__name__} of {', '.join(files)}")


@_tables.register
def _rewrite_tables(report: RewriteReport, files: Files) -> list[RenderableType]:
    """Return the nodes, what became of them, and counts; no output is that of `--dry-run`."""
    output = files["output"]
    dry_run = output is None
    left_alone = report.skipped
    skipped = {id(record) for record in left_alone}
    called = dict(zip(map(id, report.records), _called(report.records), strict=True))
    rows = [
        (
            called[id(record)],
            _optional(record.detail.get("channels")),
            _optional(record.detail.get("dtype")),
            _what_was_done(record),
        )
        for record in report.records
        if id(record) not in skipped
    ]
    blocks = table(("node", "channels>", "dtype", "action"), rows, max_rows=MAX_ROWS)
    blocks += grouped(
        (f"left alone ({record.action}): {record.reason}", called[id(record)])
        for record in left_alone
    )
    blocks += [_counts(report), _verification(report, dry_run=dry_run), *_notes(report.notes)]
    blocks.append(line("nothing written (--dry-run)" if dry_run else f"wrote {output}"))
    return blocks


def _what_was_done(record: Record) -> str:
    reasons = [record.reason, *record.detail.get("changes", ())]
    text = ", ".join(reason for reason in reasons if reason)
    return f"{record.action}: {text}" if text else record.action


@_tables.register
def _inspect_tables(report: InspectReport, files: Files) -> list[RenderableType]:
    """Return the nodes, why some cannot be converted, and counts."""
    del files
    sick = any(node.sick for node in report.nodes)
    called = _called(report.nodes)
    rows = [
        (
            name,
            node.op_type,
            _optional(node.channels),
            _optional(node.dtype),
            "batch" if node.training_mode else "moving",
            (node.sick or "sound") if sick else _UNKNOWN,
        )
        for name, node in zip(called, report.nodes, strict=True)
    ]
    headings = ("node", "operator", "channels>", "dtype", "statistics", "state")
    others = [
        (f"not convertible: {node.reason}", name)
        for name, node in zip(called, report.nodes, strict=True)
        if not node.convertible
    ]
    blocks = table(headings, rows, max_rows=MAX_ROWS)
    blocks += grouped(others)
    convertible = len(report.nodes) - len(others)
    blocks.append(
        line(
            f"found {len(report.nodes)}, convertible {convertible}, "
            f"opset {report.opset}, IR version {report.ir_version}"
        )
    )
    return [*blocks, *_notes(report.notes)]


@_tables.register
def _verify_tables(report: VerifyReport, files: Files) -> list[RenderableType]:
    """Return the outputs, and the verdict."""
    del files
    rows = [
        (
            output.name,
            _number(output.max_absolute_error),
            _number(output.max_relative_error),
            _number(output.tolerance),
            output.detail or ("equal" if output.equal else "differs"),
        )
        for output in report.outputs
    ]
    headings = ("output", "absolute error>", "relative error>", "tolerance>", "result")
    blocks = table(headings, rows)
    blocks.append(
        line(
            f"{_equality(report)}: largest relative error "
            f"{_number(report.max_relative_error)}, tolerance {_number(report.tolerance)}, "
            f"runs {report.runs}",
            style="" if report.equal else "bold red",
        )
    )
    if report.first_difference is not None:
        blocks.append(line(f"first difference: {report.first_difference}"))
    return [*blocks, *_notes(report.notes)]


def _equality(report: VerifyReport) -> str:
    if report.equal:
        return "equal"
    return "not equal" if report.differs else "not proven equal"


@_tables.register
def _calibrate_tables(report: CalibrateReport, files: Files) -> list[RenderableType]:
    """Return the layers that moved most, and what was done."""
    moved = report.layers[:MAX_MOVED_LAYERS]
    rows = [
        (
            layer.module or layer.name,
            str(layer.channels),
            _number(layer.mean_shift),
            f"{layer.variance_ratio:.3g}",
        )
        for layer in moved
    ]
    headings = ("layer", "channels>", "mean shift (std)>", "variance ratio>")
    blocks = table(headings, rows)
    blocks.append(
        line(
            f"{report.method} statistics of {report.samples} samples in {report.batches} batches, "
            f"engine {report.engine}, replicas {report.replicas}, layers {len(report.layers)}"
        )
    )
    if report.verified:
        blocks.append(line("verified", style="green"))
    elif files["output"] is not None:
        blocks.append(line("not verified (--no-verify)", style="yellow"))
    return [*blocks, *_notes(report.notes), *_written(files, "output", "statistics")]


@_tables.register
def _statistics_tables(report: StatisticsReport, files: Files) -> list[RenderableType]:
    """Return the range of each moving statistic."""
    rows = [
        (
            entry.name,
            str(entry.channels),
            entry.dtype,
            _number(entry.min),
            _number(entry.max),
        )
        for entry in report.statistics
    ]
    headings = ("statistic", "channels>", "dtype", "min>", "max>")
    return [*table(headings, rows, max_rows=MAX_ROWS), *_written(files, "output")]


@_tables.register
def _keras_tables(report: KerasReport, files: Files) -> list[RenderableType]:
    """Return the variables written, and how far they moved."""
    rows = [
        (
            variable.name,
            ",".join(map(str, variable.shape)),
            variable.dtype,
            _number(variable.largest_change),
        )
        for variable in report.variables
    ]
    headings = ("variable", "shape>", "dtype", "largest change>")
    blocks = table(headings, rows, max_rows=MAX_ROWS)
    blocks.append(line(f"variables written {len(rows)}, kept {report.kept}"))
    blocks += [_verification(report, dry_run=False), *_notes(report.notes)]
    return [*blocks, *_written(files, "output")]


@_tables.register
def _step_tables(report: StepReport, files: Files) -> list[RenderableType]:
    """Return what is not trained and why, and what was written."""
    sizes = ", ".join(f"{size:,}" for size in report.buckets)
    return [
        *_not_trained(report.records),
        line(
            f"{report.loss}, {report.optimizer['name']}: {report.parameters} parameters, "
            f"{report.values:,} values, buckets of {sizes}, AllReduce in the graph "
            f"{report.all_reduces}"
        ),
        *_notes(report.notes),
        line(f"wrote {files['output']}: gradient.onnx, update.onnx, step.json"),
    ]


@_tables.register
def _train_tables(report: TrainReport, files: Files) -> list[RenderableType]:
    """Return the epochs, and what was written."""
    rows = [_row(record) for record in report.epochs]
    headings = ("epoch>", "loss>", "accuracy>", "eval loss>", "eval accuracy>", "rate>")
    blocks = table(headings, rows[-MAX_EPOCHS:])
    blocks += _not_trained(report.records)
    again = f", resumed at step {report.resumed_at}" if report.resumed_at else ""
    blocks.append(
        line(
            f"{report.loss}, {report.optimizer['name']}: {report.parameters} parameters, "
            f"{report.values:,} values, steps {len(report.losses)}, engine {report.engine}, "
            f"replicas {report.replicas}{again}"
        )
    )
    blocks += _notes(report.notes)
    if report.verified:
        blocks.append(line("verified", style="green"))
    else:
        blocks.append(line("not verified (--no-verify)", style="yellow"))
    return [*blocks, *_written(files, "output")]


def _row(record: EpochRecord) -> tuple[str, ...]:
    return (
        str(record.epoch),
        f"{record.loss:.4f}",
        _share(record.accuracy),
        _UNKNOWN if record.eval_loss is None else f"{record.eval_loss:.4f}",
        _share(record.eval_accuracy),
        f"{record.learning_rate:.2g}",
    )


def _share(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{100 * value:.2f} %"


def _not_trained(records: list[Record]) -> list[RenderableType]:
    return grouped(
        (f"not trained: {record.reason}", record.node)
        for record in records
        if record.action == "skipped"
    )


def timing_tables(timings: dict[str, float]) -> list[RenderableType]:
    """Return what `--time-passes` prints."""
    rows = [(name, f"{seconds:.3f}") for name, seconds in timings.items()]
    return table(("pass or stage", "seconds>"), rows)


def _counts(report: RewriteReport) -> Text:
    counts = [
        f"found {report.found}",
        f"{_PAST_TENSE[report.command]} {report.converted}",
        f"left alone {len(report.skipped)}",
        f"AllReduce per step {report.all_reduces}",
    ]
    return line(", ".join(counts))


def _verification(report: RewriteReport | KerasReport, *, dry_run: bool) -> Text:
    if not report.verified:
        reason = "--dry-run" if dry_run else "--no-verify"
        if any(note.startswith(NOT_RUN) for note in report.notes):
            reason = "see the notes"
        return line(f"not verified ({reason})", style="yellow")
    if report.max_relative_error is None or report.tolerance is None:
        return line("verified")
    return line(
        f"verified: largest relative error {_number(report.max_relative_error)}, "
        f"tolerance {_number(report.tolerance)}",
        style="green",
    )


def _written(files: Files, *roles: str) -> list[RenderableType]:
    paths = (files.get(role) for role in roles)
    return [line(f"wrote {path}") for path in paths if path is not None]


def _notes(notes: Iterable[str]) -> list[RenderableType]:
    return [line(f"note: {note}") for note in notes]


def table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, max_rows: int | None = None
) -> list[RenderableType]:
    """Return a table and an empty line, or nothing if there are no rows.

    A column of which nothing is known is left out.

    Args:
        headings: One per column; one that ends in `>` is that of a column of numbers.
        rows: The cells.
        max_rows: Rows beyond this number are only counted.
    """
    if not rows:
        return []
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    known = [any(cell != _UNKNOWN for cell in column) for column in zip(*rows, strict=True)]
    for heading in itertools.compress(headings, known):
        table.add_column(
            Text(heading.removesuffix(">")),
            justify="right" if heading.endswith(">") else "left",
            overflow="fold",
        )
    shown = rows[:max_rows]
    for row in shown:
        table.add_row(*(Text(printable(cell)) for cell in itertools.compress(row, known)))
    if len(shown) == len(rows):
        return [table, Text()]
    return [table, line(f"... and {len(rows) - len(shown)} more (use --json for all)"), Text()]


def grouped(pairs: Iterable[tuple[str, str]]) -> list[RenderableType]:
    """Return each heading once, with the names that belong to it, one a line, below it."""
    groups: dict[str, list[str]] = {}
    for heading, name in pairs:
        groups.setdefault(heading, []).append(printable(name))
    blocks: list[RenderableType] = []
    for heading, names in groups.items():
        listing = Text("\n".join(names), overflow="fold")
        blocks += [line(heading, style="yellow"), Padding(listing, (0, 0, 1, 2))]
    return blocks


def line(text: str, *, style: str = "") -> Text:
    """Return one line of text, folded where it is too long."""
    return Text(printable(text), style=style, overflow="fold")


def _called(entries: Sequence[Record | NodeInfo]) -> list[str]:
    """Return what nodes are called: by their module, and by their name where that is not clear."""
    modules = collections.Counter((entry.module, entry.location) for entry in entries)
    called = []
    for entry in entries:
        node, text = entry.node if isinstance(entry, Record) else entry.name, entry.module
        part_of_one = isinstance(entry, Record) and "operator" in entry.detail
        if not text or text == node or part_of_one:
            text = node
        elif modules[entry.module, entry.location] > 1:
            text = f"{text} ({node})"
        called.append(f"{entry.location}: {text}" if entry.location else text)
    return called


def _number(value: float) -> str:
    return f"{value:.2g}"


def _optional(value: Any) -> str:
    return _UNKNOWN if value is None else str(value)
