"""The flags of `step` and `train`, and how their values are read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from syncbn_convert.cli.flags import regular_expressions

if TYPE_CHECKING:
    from syncbn_convert.options.schedules import Schedule
    from syncbn_convert.training.step_models import StepOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerFlags:
    """What `step` and `train` are given of the optimizer; None keeps its default."""

    name: str
    momentum: float | None
    nesterov: bool
    beta_one: float | None
    beta_two: float | None
    adam_epsilon: float | None
    weight_decay: float | None


def step_options(
    loss: str,
    labels: str | None,
    loss_output: str | None,
    trainable: list[str] | None,
    frozen: list[str] | None,
    optimizer: OptimizerFlags,
) -> StepOptions:
    """Return the options of a step."""
    from syncbn_convert.options.optimizers import optimizer_from
    from syncbn_convert.training.step_models import StepOptions

    return StepOptions(
        loss=loss,
        labels=labels,
        output=loss_output,
        optimizer=optimizer_from(
            optimizer.name,
            momentum=optimizer.momentum,
            nesterov=optimizer.nesterov or None,
            beta_1=optimizer.beta_one,
            beta_2=optimizer.beta_two,
            epsilon=optimizer.adam_epsilon,
            weight_decay=optimizer.weight_decay,
        ),
        trainable=tuple(trainable) if trainable else None,
        frozen=tuple(frozen or ()),
    )


def learning_rates(
    learning_rate: float, schedule: str, warmup: int, milestones: list[int] | None, factor: float
) -> Schedule:
    """Return the schedule."""
    from syncbn_convert.options.schedules import Schedule

    return Schedule(
        learning_rate=learning_rate,
        kind=schedule,  # type: ignore[arg-type]
        warmup=warmup,
        milestones=tuple(milestones or ()),
        factor=factor,
    )


Loss: TypeAlias = Annotated[
    str,
    typer.Option(
        "--loss",
        metavar="LOSS",
        help="softmax-cross-entropy, binary-cross-entropy, mse, or a scalar output's name.",
        show_default=False,
    ),
]
Labels: TypeAlias = Annotated[
    str | None,
    typer.Option("--labels", metavar="NAME", help="Which array of the data holds the labels."),
]
LossOutput: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--loss-output",
        metavar="NAME",
        help="Which output the loss is of, if there are several.",
    ),
]
OptimizerName: TypeAlias = Annotated[
    Literal["sgd", "adam", "adamw"],
    typer.Option("--optimizer", help="Whose formulas, as Keras has them."),
]
SgdMomentum: TypeAlias = Annotated[
    float | None,
    typer.Option("--momentum", metavar="M", help="Of sgd: share of the last change that goes on."),
]
Nesterov: TypeAlias = Annotated[
    bool, typer.Option("--nesterov", help="Of sgd: look ahead along the momentum.")
]
BetaOne: TypeAlias = Annotated[
    float | None,
    typer.Option("--beta-one", metavar="B", help="Of adam, adamw: decay of the mean (0.9)."),
]
BetaTwo: TypeAlias = Annotated[
    float | None,
    typer.Option("--beta-two", metavar="B", help="Of adam, adamw: decay of the square (0.999)."),
]
AdamEpsilon: TypeAlias = Annotated[
    float | None,
    typer.Option("--adam-epsilon", metavar="X", help="Of adam, adamw: added to the root (1e-7)."),
]
WeightDecay: TypeAlias = Annotated[
    float | None,
    typer.Option("--weight-decay", metavar="X", help="Shrink parameters by X times the rate."),
]
Trainable: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--trainable",
        metavar="REGEX",
        callback=regular_expressions,
        help="Train only initializers in whose name REGEX is found (repeatable).",
    ),
]
Frozen: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--frozen",
        metavar="REGEX",
        callback=regular_expressions,
        help="Do not train matching initializers (repeatable).",
    ),
]
LearningRate: TypeAlias = Annotated[
    float,
    typer.Option(
        "--learning-rate", metavar="X", help="Learning rate at its highest.", show_default=False
    ),
]
ScheduleName: TypeAlias = Annotated[
    Literal["constant", "cosine", "step"],
    typer.Option("--schedule", help="How the learning rate goes on."),
]
Warmup: TypeAlias = Annotated[
    int,
    typer.Option("--warmup", metavar="N", min=0, help="Steps in which the learning rate rises."),
]
Milestones: TypeAlias = Annotated[
    list[int] | None,
    typer.Option(
        "--milestone",
        metavar="EPOCH",
        min=1,
        help="Of the schedule step: epochs done before the rate falls (repeatable).",
    ),
]
Factor: TypeAlias = Annotated[
    float, typer.Option("--factor", metavar="X", help="Of the schedule step: what remains.")
]
EvalData: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--eval-data", metavar="DATA", help="What to evaluate the inference form on, each epoch."
    ),
]
Epochs: TypeAlias = Annotated[
    int, typer.Option("--epochs", metavar="N", min=1, help="Times through the data.")
]
TrainBatchSize: TypeAlias = Annotated[
    int, typer.Option("--batch-size", metavar="N", min=1, help="Samples an update, all replicas.")
]
Accumulate: TypeAlias = Annotated[
    int,
    typer.Option(
        "--accumulate", metavar="K", min=1, help="Micro-batches an update, statistics of each."
    ),
]
OrderSeed: TypeAlias = Annotated[
    int, typer.Option("--seed", metavar="N", min=0, help="Of the order of samples.")
]
NoShuffle: TypeAlias = Annotated[
    bool, typer.Option("--no-shuffle", help="Take the samples in their order.")
]
CheckpointFolder: TypeAlias = Annotated[
    Path | None,
    typer.Option("--checkpoint", metavar="DIR", help="Where to keep the state of the run."),
]
CheckpointEvery: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--checkpoint-every",
        metavar="N",
        min=1,
        help="Updates between checkpoints; by default one at the end of each epoch.",
    ),
]
Resume: TypeAlias = Annotated[
    bool, typer.Option("--resume", help="Go on from the checkpoint, if there is one.")
]
TrainOutput: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="FILE", help="The training form to write.", show_default=False
    ),
]
StepFolder: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="DIR", help="Folder for the graphs.", show_default=False
    ),
]
