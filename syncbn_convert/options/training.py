"""How a model is trained: loss, length, order, and what is kept on the way."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from syncbn_convert.errors import UsageError
from syncbn_convert.options import groups
from syncbn_convert.options.optimizers import Optimizer, Sgd, describe
from syncbn_convert.options.patterns import Patterns, check_patterns
from syncbn_convert.options.schedules import Schedule

if TYPE_CHECKING:
    from cyclopts import Token

SOFTMAX_CROSS_ENTROPY = "softmax-cross-entropy"
BINARY_CROSS_ENTROPY = "binary-cross-entropy"
MSE = "mse"
LOSSES = (SOFTMAX_CROSS_ENTROPY, BINARY_CROSS_ENTROPY, MSE)


_LABELLING = (
    "weights",
    "one_hot",
    "ignore_index",
    "class_weights",
    "label_smoothing",
    "class_axis",
)


def _convert_numbers(kind: Any, tokens: Sequence[Token]) -> tuple[float, ...]:
    del kind
    try:
        return tuple(float(number) for number in tokens[0].value.split(","))
    except ValueError as error:
        raise UsageError(
            f"'{tokens[0].value}': give numbers between commas, such as 1,2,0.5"
        ) from error


@Parameter(name="*", group=groups.LOSS)
@dataclasses.dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What a training step is made of.

    Attributes:
        loss: `softmax-cross-entropy`, `binary-cross-entropy`, `mse`, or a scalar output's name.
        labels: Name of the labels among the data; a scalar output of the model needs none.
        output: Output that the loss is of, if there are several.
        weights: Name of sample weights among the data, [N]; each multiplies its sample's loss.
        one_hot: Labels of softmax-cross-entropy are shares of the classes, of the output's shape.
        ignore_index: Labels of this class index do not count.
        class_weights: What labels of each class count, such as 1,2,0.5.
        label_smoothing: Share of each label that is spread over all classes.
        class_axis: Axis of the output that holds the classes, if it does not tell.
        trainable: Train only initializers in whose name REGEX is found (repeatable).
        frozen: Do not train initializers in whose name REGEX is found (repeatable).
        optimizer: Whose update.
    """

    loss: Annotated[str, Parameter(metavar="LOSS")]
    labels: Annotated[str | None, Parameter(metavar="NAME")] = None
    output: Annotated[str | None, Parameter(name="--loss-output", metavar="NAME")] = None
    weights: Annotated[str | None, Parameter(metavar="NAME")] = None
    one_hot: Annotated[bool, Parameter(negative=())] = False
    ignore_index: Annotated[int | None, Parameter(metavar="N")] = None
    class_weights: Annotated[
        tuple[float, ...] | None,
        Parameter(metavar="W,W", converter=_convert_numbers, n_tokens=1, accepts_keys=False),
    ] = None
    label_smoothing: Annotated[float, Parameter(metavar="X")] = 0.0
    class_axis: Annotated[int | None, Parameter(metavar="N")] = None
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
        self._check_label_options()

    def _check_label_options(self) -> None:
        """Refuse options that the loss does not have."""
        classes = ("one_hot", "ignore_index", "class_weights", "class_axis")
        allowed = {
            SOFTMAX_CROSS_ENTROPY: (*classes, "label_smoothing", "weights"),
            BINARY_CROSS_ENTROPY: ("label_smoothing", "weights"),
            MSE: ("weights",),
        }.get(self.loss, ())
        for name in (*classes, "label_smoothing", "weights"):
            given = getattr(self, name)
            if given not in (None, False) and given != 0.0 and name not in allowed:
                raise UsageError(f"--{name.replace('_', '-')}: the loss '{self.loss}' has none")
        if self.one_hot and self.ignore_index is not None:
            raise UsageError("--ignore-index: one-hot labels hold no index; leave one of them out")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(
                f"label smoothing {self.label_smoothing:g}: give a share from 0 up to, but not "
                "including, 1"
            )
        weights = self.class_weights
        if weights is not None and not (
            all(math.isfinite(w) and w >= 0 for w in weights) and sum(weights) > 0
        ):
            raise UsageError("class weights: give numbers from 0 up, not all 0")

    def _labelling(self) -> dict[str, Any]:
        """Return how labels count, as far as that is not the default."""
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in dataclasses.fields(self)
            if field.name in _LABELLING and (value := getattr(self, field.name)) != field.default
        }

    def describe(self) -> dict[str, Any]:
        """Return the options as JSON has them."""
        return {
            "loss": self.loss,
            "labels": self.labels,
            "output": self.output,
            **self._labelling(),
            "optimizer": describe(self.optimizer),
            "trainable": None if self.trainable is None else list(self.trainable),
            "frozen": list(self.frozen),
        }


@Parameter(name="*", group=groups.DATA)
@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochOptions:
    """What of the data an epoch is.

    Attributes:
        steps: Updates of an epoch; the next one goes on where it ended. By default all the data.
        drop_last: Leave out the samples at the end that are less than a batch.
        shuffle_buffer: Shuffle what a function or iterable yields within a buffer of N samples.
        shards: The data of each process is a part of its own, not all of it.
    """

    steps: Annotated[int | None, Parameter(name="--steps-per-epoch", metavar="N")] = None
    drop_last: Annotated[bool, Parameter(negative=())] = False
    shuffle_buffer: Annotated[int | None, Parameter(metavar="N")] = None
    shards: Annotated[bool, Parameter(negative=())] = False

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        for name, number in (("steps-per-epoch", self.steps), ("buffer", self.shuffle_buffer)):
            if number is not None and number < 1:
                raise UsageError(f"{name} {number}: give a number from 1 up")


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
        epoch: What of the data an epoch is.
    """

    schedule: Schedule
    epochs: Annotated[int, Parameter(metavar="N")] = 1
    batch_size: Annotated[int, Parameter(metavar="N")] = 32
    accumulate: Annotated[int, Parameter(metavar="K")] = 1
    seed: Annotated[int, Parameter(parse=False)] = 0
    shuffle: bool = True
    epoch: EpochOptions = EpochOptions()

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
