"""How a model is trained: loss, length, order, and what is kept on the way."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from syncbn_convert.errors import UsageError
from syncbn_convert.options import groups
from syncbn_convert.options.optimizers import Optimizer, Sgd, describe
from syncbn_convert.options.patterns import Patterns, check_patterns
from syncbn_convert.options.schedules import Schedule

SOFTMAX_CROSS_ENTROPY = "softmax-cross-entropy"
BINARY_CROSS_ENTROPY = "binary-cross-entropy"
MSE = "mse"
LOSSES = (SOFTMAX_CROSS_ENTROPY, BINARY_CROSS_ENTROPY, MSE)


@Parameter(name="*", group=groups.LOSS)
@dataclasses.dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What a training step is made of.

    Attributes:
        loss: `softmax-cross-entropy`, `binary-cross-entropy`, `mse`, or a scalar output's name.
        labels: Name of the labels among the data; a scalar output of the model needs none.
        output: Output that the loss is of, if there are several.
        trainable: Train only initializers in whose name REGEX is found (repeatable).
        frozen: Do not train initializers in whose name REGEX is found (repeatable).
        optimizer: Whose update.
    """

    loss: Annotated[str, Parameter(metavar="LOSS")]
    labels: Annotated[str | None, Parameter(metavar="NAME")] = None
    output: Annotated[str | None, Parameter(name="--loss-output", metavar="NAME")] = None
    trainable: Annotated[tuple[str, ...] | None, Parameter(metavar="REGEX")] = None
    frozen: Patterns = ()
    optimizer: Annotated[Optimizer, Parameter(parse=False)] = dataclasses.field(default_factory=Sgd)

    def __post_init__(self) -> None:
        """Refuse what is not a regular expression, and labels that are missing or too many."""
        check_patterns((*(self.trainable or ()), *self.frozen))
        if (self.loss in LOSSES) != bool(self.labels):
            raise UsageError(
                f"loss '{self.loss}': {', '.join(LOSSES)} need labels, a scalar output of "
                "the model takes none"
            )

    def describe(self) -> dict[str, Any]:
        """Return the options as JSON has them."""
        return {
            "loss": self.loss,
            "labels": self.labels,
            "output": self.output,
            "optimizer": describe(self.optimizer),
            "trainable": None if self.trainable is None else list(self.trainable),
            "frozen": list(self.frozen),
        }


@Parameter(name="*", group=groups.DATA)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How long and on what a model is trained.

    Attributes:
        schedule: The learning rate.
        epochs: Times through the data.
        batch_size: Samples of one update, over all replicas; the last of an epoch may be smaller.
        accumulate: Micro-batches of one update, each with statistics of its own.
        seed: Of the order of samples.
        shuffle: Whether every epoch has an order of its own.
    """

    schedule: Schedule
    epochs: Annotated[int, Parameter(metavar="N")] = 1
    batch_size: Annotated[int, Parameter(metavar="N")] = 32
    accumulate: Annotated[int, Parameter(metavar="K")] = 1
    seed: Annotated[int, Parameter(parse=False)] = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if min(self.epochs, self.batch_size, self.accumulate) < 1 or self.seed < 0:
            raise UsageError(
                f"epochs {self.epochs}, batch size {self.batch_size}, accumulate "
                f"{self.accumulate}, seed {self.seed}: give numbers from 1 up, a seed from 0 up"
            )
        if self.accumulate > self.batch_size:
            raise UsageError(
                f"a batch of {self.batch_size} samples cannot be {self.accumulate} micro-batches; "
                "give a larger batch size, which counts all of them"
            )

    def identity(self) -> dict[str, Any]:
        """Return what a run has to keep to be the same run, later epochs aside."""
        fields = dataclasses.asdict(self)
        if not self.schedule.needs_length:
            del fields["epochs"]
        return fields


@Parameter(name="*", group=groups.CHECKPOINTS)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """Where and when to keep the state of the run.

    Attributes:
        folder: Where to keep it; the folder holds one checkpoint, the latest.
        resume: Go on from the one that is there; without one the run begins anew.
        every: Updates between checkpoints; by default one at the end of each epoch.
    """

    folder: Annotated[Path, Parameter(name="--checkpoint", metavar="DIR")]
    resume: Annotated[bool, Parameter(negative=())] = False
    every: Annotated[int | None, Parameter(name="--checkpoint-every", metavar="N")] = None

    def __post_init__(self) -> None:
        """Refuse a number that makes no sense."""
        if self.every is not None and self.every < 1:
            raise UsageError(f"checkpoint every {self.every} updates: give a number from 1 up")
