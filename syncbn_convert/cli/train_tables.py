"""What `step` and `train` print."""

from __future__ import annotations

from pathlib import Path

from rich.console import RenderableType

from syncbn_convert.cli.tables import grouped, line, table
from syncbn_convert.reports import Record
from syncbn_convert.training.reports import EpochRecord, StepReport, TrainReport

MAX_EPOCHS = 60


def step_tables(report: StepReport, folder: Path) -> list[RenderableType]:
    """Return what `step` prints: what is not trained and why, and what was written."""
    sizes = ", ".join(f"{size:,}" for size in report.buckets)
    return [
        *_not_trained(report.records),
        line(
            f"{report.loss}, {report.optimizer['name']}: {report.parameters} parameters, "
            f"{report.values:,} values, buckets of {sizes}, AllReduce in the graph "
            f"{report.all_reduces}"
        ),
        *(line(f"note: {note}") for note in report.notes),
        line(f"wrote {folder}: gradient.onnx, update.onnx, step.json"),
    ]


def train_tables(report: TrainReport, output: Path) -> list[RenderableType]:
    """Return what `train` prints: the epochs, and what was written."""
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
    blocks += [line(f"note: {note}") for note in report.notes]
    if report.verified:
        blocks.append(line("verified", style="green"))
    else:
        blocks.append(line("not verified (--no-verify)", style="yellow"))
    return [*blocks, line(f"wrote {output}")]


def _row(record: EpochRecord) -> tuple[str, ...]:
    return (
        str(record.epoch),
        f"{record.loss:.4f}",
        _share(record.accuracy),
        "?" if record.eval_loss is None else f"{record.eval_loss:.4f}",
        _share(record.eval_accuracy),
        f"{record.learning_rate:.2g}",
    )


def _share(value: float | None) -> str:
    return "?" if value is None else f"{100 * value:.2f} %"


def _not_trained(records: list[Record]) -> list[RenderableType]:
    return grouped(
        (f"not trained: {record.reason}", record.node)
        for record in records
        if record.action == "skipped"
    )
