"""The commands: a signature whose option classes are the flags, and one call each."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, TypeAlias

from cyclopts import App, Parameter

import syncbn_convert
from syncbn_convert.cli import destinations, progress
from syncbn_convert.cli.help import TwoColumns, shown_default
from syncbn_convert.cli.showing import PageShowing, RewriteShowing, Showing, show
from syncbn_convert.options import groups
from syncbn_convert.options.calibrating import CalibrateOptions
from syncbn_convert.options.importing import ReadingOptions
from syncbn_convert.options.optimizers import OptimizerFlags
from syncbn_convert.options.replicas import ReplicaOptions
from syncbn_convert.options.rewrites import (
    ConvertOptions,
    FoldOptions,
    FuseOptions,
    UnfuseOptions,
)
from syncbn_convert.options.training import Checkpointing, StepOptions, TrainOptions
from syncbn_convert.options.verifying import Verifying, VerifyOptions
from syncbn_convert.options.writing import (
    CalibrationOutput,
    OutputOptions,
    RequiredOutput,
    WritingOptions,
)

Model: TypeAlias = Annotated[
    Path, Parameter(help="ONNX model file, or a model of Keras or TensorFlow.")
]
Samples: TypeAlias = Annotated[
    str,
    Parameter(
        metavar="DATA",
        group=groups.DATA,
        help="An .npz file or folder of them, arrays named as inputs; or package.module:function.",
    ),
]


app = App(
    name="syncbn-convert",
    version=f"syncbn-convert {syncbn_convert.__version__}",
    help="""Turn every BatchNormalization of an ONNX model into its synchronized form, and back.

`syncbn-convert MODEL` is `syncbn-convert convert MODEL`.""",
    help_epilogue=(
        "Exit codes: 0 done; 1 cannot be converted as asked, or verification failed; "
        "2 usage or files; 101 a bug."
    ),
    help_format="plaintext",
    help_formatter=TwoColumns(),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(
        allow_repeating=True, negative_iterable=(), show_default=shown_default
    ),
)
app.command(
    "syncbn_convert.cli.completion:install",
    name="--install-completion",
    help="""Install shell completion for this application.

It is written to where your shell looks for it; start the shell anew to have it.""",
)


def _example(arguments: str) -> str:
    return f"Example: syncbn-convert {arguments}"


@app.command(help_epilogue=_example("convert model.onnx -o model.sync.onnx --momentum 0.99"))
@destinations.checked
def convert(
    model: Model,
    /,
    *,
    options: ConvertOptions = ConvertOptions(),
    verifying: Verifying = Verifying(),
    reading: ReadingOptions = ReadingOptions(),
    writing: WritingOptions = WritingOptions(),
    showing: RewriteShowing = RewriteShowing(),
) -> None:
    """Turn BatchNormalization into its synchronized training form.

    The result is verified, then written; by default as MODEL.sync.onnx beside MODEL.
    """
    with progress.stages(model, showing, reading) as show_stage:
        from syncbn_convert.commands import convert

        result = convert.run(
            model,
            dataclasses.replace(options, seed=verifying.seed),
            writing,
            verifying,
            page=showing.report,
            show_stage=show_stage,
        )
    show(result, showing)


@app.command(help_epilogue=_example("fold model.sync.onnx --fuse -o model.deploy.onnx"))
@destinations.checked
def fold(
    model: Model,
    /,
    *,
    options: FoldOptions = FoldOptions(),
    verifying: Verifying = Verifying(),
    reading: ReadingOptions = ReadingOptions(),
    writing: WritingOptions = WritingOptions(),
    showing: RewriteShowing = RewriteShowing(),
) -> None:
    """Turn the training form back into inference BatchNormalization.

    With --statistics or --from-keras, MODEL may be in inference form too. The result is verified,
    then written; by default as MODEL.deploy.onnx beside MODEL.
    """
    with progress.stages(model, showing, reading) as show_stage:
        from syncbn_convert.commands import fold

        result = fold.run(
            model,
            options,
            writing,
            verifying,
            page=showing.report,
            show_stage=show_stage,
        )
    show(result, showing)


@app.command(help_epilogue=_example("fuse model.onnx -o model.fused.onnx"))
@destinations.checked
def fuse(
    model: Model,
    /,
    *,
    options: FuseOptions = FuseOptions(),
    verifying: Verifying = Verifying(),
    reading: ReadingOptions = ReadingOptions(),
    writing: WritingOptions = WritingOptions(),
    showing: RewriteShowing = RewriteShowing(),
) -> None:
    """Let inference BatchNormalization disappear into the weights around it.

    The result is verified, then written; by default as MODEL.fused.onnx beside MODEL.
    """
    with progress.stages(model, showing, reading) as show_stage:
        from syncbn_convert.commands import fuse

        result = fuse.run(
            model,
            options,
            writing,
            verifying,
            page=showing.report,
            show_stage=show_stage,
        )
    show(result, showing)


@app.command(help_epilogue=_example("inspect model.onnx"))
@destinations.checked
def inspect(
    model: Model,
    /,
    *,
    reading: ReadingOptions = ReadingOptions(),
    showing: Showing = Showing(),
) -> None:
    """List normalization nodes, and why some cannot be converted."""
    with progress.stages(model, showing, reading):
        from syncbn_convert.commands import inspect

        result = inspect.run(model)
    show(result, showing)


@app.command(help_epilogue=_example("verify model.onnx model.deploy.onnx --seed 7"))
@destinations.checked
def verify(
    reference: Annotated[Path, Parameter(help="The model that is right.")],
    candidate: Annotated[Path, Parameter(help="The model that is compared with it.")],
    /,
    *,
    options: VerifyOptions = VerifyOptions(),
    data: Annotated[
        Path | None,
        Parameter(
            metavar="PATH",
            group=groups.VERIFICATION,
            help="Also compare on this .npz file, or folder of them.",
        ),
    ] = None,
    reading: ReadingOptions = ReadingOptions(),
    showing: PageShowing = PageShowing(),
) -> int:
    """Compare two models on ONNX Runtime; exit code 1 if unequal."""
    with progress.stages(candidate, showing, reading):
        from syncbn_convert.commands import verify

        result = verify.run(
            reference,
            candidate,
            dataclasses.replace(options, data=data),
            page=showing.report,
        )
    show(result, showing)
    return 0 if result.report.equal else 1


@app.command(
    help_epilogue=_example("calibrate model.onnx --data data.npz --replicas 2 -o calibrated.onnx")
)
@destinations.checked
def calibrate(
    model: Model,
    /,
    *,
    data: Samples,
    options: CalibrateOptions = CalibrateOptions(),
    fold: Annotated[
        bool,
        Parameter(
            group=groups.STATISTICS,
            negative=(),
            help="Write the inference form, also of a training form.",
        ),
    ] = False,
    replicas: ReplicaOptions = ReplicaOptions(),
    verifying: Verifying = Verifying(),
    reading: ReadingOptions = ReadingOptions(),
    writing: CalibrationOutput = CalibrationOutput(),
    showing: PageShowing = PageShowing(),
) -> None:
    """Re-estimate moving statistics on data, on one or many replicas.

    A training form stays one (but see --fold), any other model stays in inference form. Under
    mpirun or torchrun each process is a replica.
    """
    with progress.batches(model, showing, reading) as show_batch:
        from syncbn_convert.commands import calibrate

        result = calibrate.run(
            model,
            data,
            options,
            writing,
            verifying,
            replicas=replicas,
            fold=fold,
            page=showing.report,
            show_batch=show_batch,
        )
    show(result, showing)


@app.command(help_epilogue=_example("unfuse model.onnx --data data.npz -o model.unfused.onnx"))
@destinations.checked
def unfuse(
    model: Model,
    /,
    *,
    data: Samples,
    options: UnfuseOptions = UnfuseOptions(),
    replicas: ReplicaOptions = ReplicaOptions(),
    verifying: Verifying = Verifying(),
    reading: ReadingOptions = ReadingOptions(),
    writing: OutputOptions = OutputOptions(),
    showing: PageShowing = PageShowing(),
) -> None:
    """Give layers their normalization back, with statistics measured on data.

    The function in inference stays as it is. The result is verified, then written; by default as
    MODEL.unfused.onnx beside MODEL.
    """
    with progress.batches(model, showing, reading) as show_batch:
        from syncbn_convert.commands import unfuse

        result = unfuse.run(
            model,
            data,
            options,
            writing,
            verifying,
            replicas=replicas,
            page=showing.report,
            show_batch=show_batch,
        )
    show(result, showing)


@app.command(help_epilogue=_example("statistics model.onnx -o moving.safetensors"))
@destinations.checked
def statistics(
    model: Model | None = None,
    /,
    *,
    to_keras: Annotated[
        Path | None,
        Parameter(
            metavar="KERAS",
            group=groups.STATISTICS,
            help="Write into a copy of this Keras file (FILE), from MODEL or from --statistics.",
        ),
    ] = None,
    statistics: Annotated[
        Path | None,
        Parameter(
            metavar="FILE",
            group=groups.STATISTICS,
            help="With --to-keras: moving statistics (.safetensors) in place of MODEL.",
        ),
    ] = None,
    verifying: Verifying = Verifying(),
    reading: ReadingOptions = ReadingOptions(),
    writing: RequiredOutput,
    showing: Showing = Showing(),
) -> None:
    """Write the moving statistics of MODEL to a .safetensors file.

    With --to-keras, write a Keras file with the statistics of --statistics, or with the statistics
    and weights of MODEL, a training form or in inference form; all of them, or nothing.
    """
    with progress.stages(to_keras or model, showing, reading):
        from syncbn_convert.commands import statistics as command

        result = command.run(model, writing, verifying, to_keras=to_keras, given=statistics)
    show(result, showing)


@app.command(
    help_epilogue=_example("step model.onnx --loss mse --labels label --optimizer adam -o step")
)
@destinations.checked
def step(
    model: Model,
    /,
    *,
    options: StepOptions,
    optimizer: OptimizerFlags = OptimizerFlags(),
    verifying: Verifying = Verifying(),
    reading: ReadingOptions = ReadingOptions(),
    writing: RequiredOutput,
    showing: Showing = Showing(),
) -> None:
    """Write the graphs of a training step for other drivers.

    DIR gets gradient.onnx, update.onnx and step.json, which says what belongs together.
    """
    with progress.stages(model, showing, reading):
        from syncbn_convert.commands import step

        result = step.run(
            model,
            dataclasses.replace(options, optimizer=optimizer.build()),
            writing,
            verifying,
        )
    show(result, showing)


@app.command(
    help_epilogue=_example(
        "train model.onnx --data data.npz --labels label --loss softmax-cross-entropy "
        "--learning-rate 0.01 --epochs 3 --replicas 2 -o trained.onnx"
    )
)
@destinations.checked
def train(
    model: Model,
    /,
    *,
    step: StepOptions,
    optimizer: OptimizerFlags = OptimizerFlags(),
    options: TrainOptions,
    data: Samples,
    eval_data: Annotated[
        str | None,
        Parameter(
            metavar="DATA",
            group=groups.DATA,
            help="What to evaluate the inference form on after each epoch.",
        ),
    ] = None,
    checkpointing: Checkpointing | None = None,
    replicas: ReplicaOptions = ReplicaOptions(),
    verifying: Verifying = Verifying(),
    reading: ReadingOptions = ReadingOptions(),
    writing: RequiredOutput,
    showing: PageShowing = PageShowing(),
) -> None:
    """Train a model on data, on one or many replicas.

    The result is the training form with new weights under the same names; fold it to deploy it.
    Under mpirun or torchrun each process is a replica.
    """
    with progress.updates(model, showing, reading) as show_update:
        from syncbn_convert.commands import train

        result = train.run(
            model,
            data,
            dataclasses.replace(step, optimizer=optimizer.build()),
            dataclasses.replace(options, seed=verifying.seed),
            writing,
            verifying,
            eval_data=eval_data,
            replicas=replicas,
            checkpointing=checkpointing,
            page=showing.report,
            show_update=show_update,
        )
    show(result, showing)
