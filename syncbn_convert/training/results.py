"""What `step` and `train` report."""

from __future__ import annotations

import dataclasses
from typing import Any

from syncbn_convert.reports import Record, Report


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch of training.

    Attributes:
        epoch: Its number, from 1.
        steps: Updates done at its end.
        loss: Mean over its samples, as each batch was met.
        accuracy: Share of right predictions meanwhile; None where the loss does not tell.
        eval_loss: Loss of the inference form on the evaluation data; None without any.
        eval_accuracy: Accuracy of the inference form on the evaluation data.
        learning_rate: Of the last update.
        seconds: Wall time since the beginning of the run.
    """

    epoch: int
    steps: int
    loss: float
    accuracy: float | None
    eval_loss: float | None
    eval_accuracy: float | None
    learning_rate: float
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepReport(Report):
    """Result of `step`.

    Attributes:
        loss: What is minimized.
        optimizer: Whose update, with its options.
        parameters: Number of trained initializers.
        values: Number of their elements.
        buckets: Number of elements of each bucket.
        records: Each floating-point initializer: `differentiated`, or `skipped` and why.
        all_reduces: AllReduce calls in the gradient graph.
        notes: What a user should know beside the records.
        seconds: Wall time.
    """

    command = "step"
    loss: str
    optimizer: dict[str, Any]
    parameters: int
    values: int
    buckets: list[int]
    records: list[Record]
    all_reduces: int
    notes: list[str]
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainReport(Report):
    """Result of `train`.

    Attributes:
        loss: What was minimized.
        optimizer: Whose updates, with its options.
        engine: What connected the replicas.
        replicas: Number of replicas.
        samples: Samples of an epoch; None where they are not known beforehand.
        parameters: Number of trained initializers.
        values: Number of their elements.
        epochs: What happened in each.
        losses: Loss of each step.
        resumed_at: Updates that were done before this run; 0 if it began anew.
        records: Initializers that were not trained, and why.
        notes: What a user should know beside.
        verified: Whether the result was run and compared.
        seconds: Wall time, that of earlier runs included.
    """

    command = "train"
    loss: str
    optimizer: dict[str, Any]
    engine: str
    replicas: int
    samples: int | None
    parameters: int
    values: int
    epochs: list[EpochRecord]
    losses: list[float]
    resumed_at: int
    records: list[Record]
    notes: list[str]
    verified: bool
    seconds: float
