"""The flags of `convert` that set parameters of SyncBatchNormalization."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer

_SHOWN = 60


def parse_config(value: str | None) -> Any:
    """Read a Keras name, a number, or a configuration in JSON.

    Raises:
        typer.BadParameter: if it begins like JSON and is not.
    """
    if value is None:
        return None
    if value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise typer.BadParameter(
                f"'{value[:_SHOWN]}' is not JSON that can be read ({error}); write "
                '\'{"class_name": "L2", "config": {"l2": 1e-4}}\''
            ) from error
    try:
        return float(value)
    except ValueError:
        return value


def _checked(value: str | None) -> str | None:
    parse_config(value)
    return value


def _option(*names: str, metavar: str | None = None, text: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=text)


def _config(name: str, what: str) -> Any:
    return typer.Option(
        name,
        metavar="KERAS",
        callback=_checked,
        help=f"{what}: a Keras name, a number, or a configuration in JSON.",
    )


Axis: TypeAlias = Annotated[
    int | None, _option("--axis", metavar="N", text="Channel axis, of any sign.")
]
Momentum: TypeAlias = Annotated[
    float | None,
    _option("--momentum", metavar="M", text="Share of the old statistic that an update keeps."),
]
PytorchMomentum: TypeAlias = Annotated[
    float | None,
    _option("--pytorch-momentum", metavar="M", text="One minus --momentum."),
]
Epsilon: TypeAlias = Annotated[
    float | None, _option("--epsilon", metavar="X", text="Added to the variance inside the root.")
]
Center: TypeAlias = Annotated[
    bool | None, _option("--center/--no-center", text="Without it, beta is dropped.")
]
Scale: TypeAlias = Annotated[
    bool | None, _option("--scale/--no-scale", text="Without it, gamma is dropped.")
]
BetaInitializer: TypeAlias = Annotated[
    str | None, _config("--beta-initializer", "New values of beta")
]
GammaInitializer: TypeAlias = Annotated[
    str | None, _config("--gamma-initializer", "New values of gamma")
]
MovingMeanInitializer: TypeAlias = Annotated[
    str | None, _config("--moving-mean-initializer", "New moving mean")
]
MovingVarianceInitializer: TypeAlias = Annotated[
    str | None, _config("--moving-variance-initializer", "New moving variance")
]
BetaRegularizer: TypeAlias = Annotated[
    str | None, _config("--beta-regularizer", "Penalty of beta (a number: L2)")
]
GammaRegularizer: TypeAlias = Annotated[
    str | None, _config("--gamma-regularizer", "Penalty of gamma (a number: L2)")
]
BetaConstraint: TypeAlias = Annotated[
    str | None, _config("--beta-constraint", "Projection of beta after its updates")
]
GammaConstraint: TypeAlias = Annotated[
    str | None, _config("--gamma-constraint", "Projection of gamma after its updates")
]
Trainable: TypeAlias = Annotated[
    bool | None,
    _option("--trainable/--no-trainable", text="Without it, inference mode, statistics untouched."),
]
Training: TypeAlias = Annotated[
    bool | None, _option("--training/--no-training", text="Without it, the inference form.")
]
Synchronized: TypeAlias = Annotated[
    bool | None,
    _option("--sync/--no-sync", text="Without it, ONNX's own training mode, no collectives."),
]
Variance: TypeAlias = Annotated[
    Literal["population", "unbiased"] | None,
    _option("--variance", text="What the moving variance holds: that of N, or of N - 1."),
]
GroupSize: TypeAlias = Annotated[
    int | None,
    _option(
        "--group-size", metavar="K", text="Consecutive replicas that share statistics; 0 is all."
    ),
]
OptionsFile: TypeAlias = Annotated[
    Path | None,
    _option("--options", metavar="FILE", text="TOML file of these options by node names."),
]
Reset: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--reset",
        help="Let options change the function in inference.",
    ),
]
