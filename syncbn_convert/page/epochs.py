"""What a page says of a training run."""

from __future__ import annotations

from collections.abc import Sequence

from syncbn_convert.page import plots
from syncbn_convert.training.results import EpochRecord, TrainReport


def figures(report: TrainReport) -> dict[str, object]:
    """Return the numbers at the top of the page."""
    found: dict[str, object] = {
        "steps": len(report.losses),
        "parameters": report.parameters,
        "replicas": report.replicas,
    }
    last = report.epochs[-1]
    for name, value in (
        ("evaluation accuracy", last.eval_accuracy),
        ("training accuracy", last.accuracy),
    ):
        if value is not None:
            return {**found, name: f"{100 * value:.2f} %"}
    return {**found, "loss": f"{last.loss:.4g}"}


def curves(report: TrainReport) -> list[str]:
    """Return the pictures: loss of every step and epoch, accuracy, learning rate."""
    pictures = [
        plots.curves(
            "loss",
            {"step": (range(1, len(report.losses) + 1), report.losses), **_losses(report.epochs)},
            "step",
        )
    ]
    accuracy = {
        name: _points(report.epochs, values)
        for name, values in (
            ("training", [record.accuracy for record in report.epochs]),
            ("evaluation", [record.eval_accuracy for record in report.epochs]),
        )
        if any(value is not None for value in values)
    }
    if accuracy:
        pictures.append(plots.curves("accuracy", accuracy, "step"))
    return pictures


def rows(report: TrainReport) -> list[tuple[str, ...]]:
    """Return the cells of the table of epochs, below `HEAD`."""
    return [
        (
            str(record.epoch),
            f"{record.loss:.4g}",
            _share(record.accuracy),
            "" if record.eval_loss is None else f"{record.eval_loss:.4g}",
            _share(record.eval_accuracy),
            f"{record.learning_rate:.3g}",
            f"{record.seconds:.1f} s",
        )
        for record in report.epochs
    ]


HEAD = ("epoch", "loss", "accuracy", "evaluation loss", "evaluation accuracy", "rate", "time")


def _losses(epochs: Sequence[EpochRecord]) -> dict[str, plots.Points]:
    values = [record.eval_loss for record in epochs]
    return {"evaluation": _points(epochs, values)} if values[0] is not None else {}


def _points(epochs: Sequence[EpochRecord], values: Sequence[float | None]) -> plots.Points:
    pairs = [
        (record.steps, value)
        for record, value in zip(epochs, values, strict=True)
        if value is not None
    ]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"
