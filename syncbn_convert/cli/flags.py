"""The flags that several commands share, and how their values are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from syncbn_convert.cli import terminal

if TYPE_CHECKING:
    from syncbn_convert.verification import VerifyOptions

STANDARD_OUTPUT = "-"
"""What a `--json` without FILE stands for."""

_DIMENSIONS = re.compile(r"[1-9][0-9]*(?:[,x][1-9][0-9]*)*")


def parse_input_shapes(values: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Read `NAME:DIMS` values, split at the last colon because names may hold colons.

    Args:
        values: Values of `--input-shape`, DIMS like `2,3,224,224` or `2x3x224x224`.

    Returns:
        Shape per input name.

    Raises:
        typer.BadParameter: A value is not of that form, or a name comes twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for value in values:
        name, _, dimensions = value.rpartition(":")
        if not name or not _DIMENSIONS.fullmatch(dimensions):
            raise typer.BadParameter(
                f"'{value}' is not NAME:DIMS with positive sizes, such as x:2,3,224,224"
            )
        if name in shapes:
            raise typer.BadParameter(f"'{name}' is given twice; give each input one shape")
        shapes[name] = tuple(int(size) for size in re.split("[,x]", dimensions))
    return shapes


def verify_options(input_shape: list[str] | None, **given: Any) -> VerifyOptions:
    """Return the options that were given; the others keep their defaults."""
    from syncbn_convert.verification import VerifyOptions

    fields = {name: value for name, value in given.items() if value is not None}
    return VerifyOptions(input_shapes=parse_input_shapes(input_shape or ()), **fields)


def _input_shapes(values: list[str] | None) -> list[str]:
    parse_input_shapes(values or ())
    return values or []


def regular_expressions(values: list[str] | None) -> list[str]:
    """Refuse values of a flag that are no regular expressions."""
    for value in values or ():
        try:
            re.compile(value)
        except re.error as error:
            raise typer.BadParameter(
                f"'{value}' is not a regular expression ({error}); escape special characters"
            ) from error
    return values or []


def _output(value: Path | None) -> Path | None:
    if value is not None and str(value).startswith("-"):
        raise typer.BadParameter(f"'{value}' looks like a flag; write ./{value} if it is a file")
    return value


def _json_target(value: str | None) -> str | None:
    if value == "" or (value is not None and value.endswith(".onnx")):
        raise typer.BadParameter(f"'{value}' is no JSON file; give --json=FILE.json, or --json")
    return value


def _print_version(value: bool) -> None:
    if value:
        from syncbn_convert import __version__

        terminal.write(f"syncbn-convert {__version__}\n")
        raise typer.Exit


Version: TypeAlias = Annotated[
    bool,
    typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
]
Model: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="ONNX model file, or a model of Keras or TensorFlow.",
        show_default=False,
    ),
]
CustomObjects: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--custom-objects",
        metavar="MODULE",
        help="Module of layers and functions that a Keras model needs (repeatable).",
    ),
]
Output: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        callback=_output,
        help="Where to write the result; by default beside MODEL.",
    ),
]
StatisticsFile: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        callback=_output,
        help="Where to write the statistics (.safetensors), or the Keras model.",
        show_default=False,
    ),
]
Include: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        metavar="REGEX",
        callback=regular_expressions,
        help="Convert only nodes in whose name REGEX is found (repeatable).",
    ),
]
Exclude: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="REGEX",
        callback=regular_expressions,
        help="Leave matching nodes as they are (repeatable).",
    ),
]
Freeze: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--freeze",
        metavar="REGEX",
        callback=regular_expressions,
        help="Keep matching nodes in inference mode, statistics untouched (repeatable).",
    ),
]
NoRecognize: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--no-recognize",
        help="Leave normalization alone that is written in elementwise operators.",
    ),
]
RecognizeAffine: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--recognize-affine",
        help="Take scale * x + bias behind weights for normalization, too, statistics unknown.",
    ),
]
Opset: TypeAlias = Annotated[
    int | None,
    typer.Option("--opset", metavar="N", min=1, help="Opset version of the result."),
]
InputShape: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        metavar="NAME:DIMS",
        callback=_input_shapes,
        help="Shape of an input when models are run, such as x:2,3,224,224 (repeatable).",
    ),
]
ExternalData: TypeAlias = Annotated[
    bool,
    typer.Option("--save-as-external-data", help="Write the weights into a file of their own."),
]
NoVerify: TypeAlias = Annotated[
    bool, typer.Option("--no-verify", help="Do not run and compare the result.")
]
RelativeTolerance: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--rtol",
        metavar="X",
        help="Relative tolerance, in place of the computed one.",
    ),
]
AbsoluteTolerance: TypeAlias = Annotated[
    float | None,
    typer.Option("--atol", metavar="X", help="Absolute tolerance."),
]
Seed: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        min=0,
        help="Seed of random initializers and of generated inputs.",
    ),
]
Data: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="PATH", help="Also compare on this .npz file, or folder of them."
    ),
]
Statistics: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--statistics",
        metavar="FILE",
        help="Moving statistics (.safetensors) in place of the model's own.",
    ),
]
FromKeras: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--from-keras",
        metavar="TRAINED",
        help="Weights and statistics of this trained Keras file, which MODEL was imported from.",
    ),
]
ToKeras: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--to-keras",
        metavar="KERAS",
        help="Write into a copy of this Keras file (FILE), from MODEL or from --statistics.",
    ),
]
GivenStatistics: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--statistics",
        metavar="FILE",
        help="With --to-keras: moving statistics (.safetensors) in place of MODEL.",
    ),
]
OptionalModel: TypeAlias = Annotated[
    Path | None,
    typer.Argument(
        metavar="MODEL",
        help="ONNX model file, or a model of Keras or TensorFlow.",
        show_default=False,
    ),
]
KeepBatchNorm: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--keep-batchnorm",
        help="Spell a channel axis other than 1 as BatchNormalization between Transposes.",
    ),
]
FuseResult: TypeAlias = Annotated[
    bool, typer.Option("--fuse", help="Fuse the result into the weights around it, too.")
]
Samples: TypeAlias = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help="An .npz file or folder of them, arrays named as inputs; or package.module:function.",
        show_default=False,
    ),
]
BatchSize: TypeAlias = Annotated[
    int, typer.Option("--batch-size", metavar="N", min=1, help="Samples a batch, all replicas.")
]
Batches: TypeAlias = Annotated[
    int | None,
    typer.Option("--batches", metavar="N", min=1, help="Batches to take; by default all."),
]
Warmup: TypeAlias = Annotated[
    int, typer.Option("--warmup", metavar="N", min=0, help="Batches before those that count.")
]
Method: TypeAlias = Annotated[
    Literal["precise", "moving"],
    typer.Option(
        "--method",
        help="Statistics of all samples together, or the moving average of training.",
    ),
]
Replicas: TypeAlias = Annotated[
    int, typer.Option("--replicas", metavar="N", min=1, help="Replicas, as threads.")
]
EngineName: TypeAlias = Annotated[
    Literal["auto", "local", "threads", "mpi", "torch"],
    typer.Option("--engine", help="What connects replicas; auto knows mpirun and torchrun."),
]
ThreadsPerReplica: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--threads-per-replica", metavar="N", min=1, help="By default replicas share the cores."
    ),
]
CollectiveTimeout: TypeAlias = Annotated[
    float,
    typer.Option(
        "--collective-timeout",
        metavar="SECONDS",
        min=0.001,
        help="Longest wait of a replica for the others.",
    ),
]
ModelOutput: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", callback=_output, help="Where to write the model."
    ),
]
StatisticsOutput: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--statistics-out",
        metavar="FILE",
        callback=_output,
        help="Where to write the statistics alone (.safetensors).",
    ),
]
FoldResult: TypeAlias = Annotated[
    bool, typer.Option("--fold", help="Write the inference form, also of a training form.")
]
DryRun: TypeAlias = Annotated[
    bool, typer.Option("--dry-run", help="Say what would change, node by node; write nothing.")
]
Force: TypeAlias = Annotated[
    bool, typer.Option("--force", help="Write over an existing file, MODEL included.")
]
Json: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="[=FILE]",
        callback=_json_target,
        help="Write JSON to FILE (only as --json=FILE), or to stdout in place of the table.",
    ),
]
Page: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE.html",
        help="Write what was done as a page with pictures (needs the extra 'report').",
    ),
]
Verbose: TypeAlias = Annotated[
    bool, typer.Option("--verbose", "-v", help="Log stages and every node to stderr.")
]
Quiet: TypeAlias = Annotated[
    bool, typer.Option("--quiet", "-q", help="No table and no progress; errors and --json remain.")
]
TimePasses: TypeAlias = Annotated[
    bool, typer.Option("--time-passes", help="Print the time of each pass and stage to stderr.")
]
PrintBetweenPasses: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--print-between-passes",
        help="Print the model to stderr after each pass that changed it.",
    ),
]
