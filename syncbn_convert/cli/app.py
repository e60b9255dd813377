"""The commands: flags in, one call of the Python functions, a table or JSON out."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from syncbn_convert.cli import (
    flags,
    layer_flags,
    replica_commands,
    serialization,
    statistics_command,
    tables,
    terminal,
    train_commands,
)
from syncbn_convert.cli.pages import PageWriter
from syncbn_convert.reports import RewriteReport

if TYPE_CHECKING:
    from syncbn_convert.options.rewrites import ConvertOptions, FoldOptions, FuseOptions
    from syncbn_convert.verification import VerifyOptions

DEFAULT_COMMAND = "convert"

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=(
        "Exit codes: 0 done; 1 cannot be converted as asked, or verification failed; "
        "2 usage or files; 101 a bug."
    ),
)


@app.callback()
def syncbn_convert(
    version: flags.Version = False,
) -> None:
    """Turn every BatchNormalization of an ONNX model into its synchronized form, and back.

    `syncbn-convert MODEL` is `syncbn-convert convert MODEL`.
    """
    del version


@dataclasses.dataclass(frozen=True, kw_only=True)
class _RewriteFlags:
    """The flags that `convert` and `fold` share, beside the options of the rewrite itself."""

    model: Path
    custom_objects: list[str] | None
    output: Path | None
    verify: bool
    verify_options: VerifyOptions
    save_as_external_data: bool
    dry_run: bool
    force: bool
    json: str | None
    page: Path | None
    verbose: bool
    quiet: bool
    time_passes: bool


@app.command()
def convert(
    model: flags.Model,
    output: flags.Output = None,
    include: flags.Include = None,
    exclude: flags.Exclude = None,
    freeze: flags.Freeze = None,
    axis: layer_flags.Axis = None,
    momentum: layer_flags.Momentum = None,
    pytorch_momentum: layer_flags.PytorchMomentum = None,
    epsilon: layer_flags.Epsilon = None,
    center: layer_flags.Center = None,
    scale: layer_flags.Scale = None,
    beta_initializer: layer_flags.BetaInitializer = None,
    gamma_initializer: layer_flags.GammaInitializer = None,
    moving_mean_initializer: layer_flags.MovingMeanInitializer = None,
    moving_variance_initializer: layer_flags.MovingVarianceInitializer = None,
    beta_regularizer: layer_flags.BetaRegularizer = None,
    gamma_regularizer: layer_flags.GammaRegularizer = None,
    beta_constraint: layer_flags.BetaConstraint = None,
    gamma_constraint: layer_flags.GammaConstraint = None,
    trainable: layer_flags.Trainable = None,
    training: layer_flags.Training = None,
    sync: layer_flags.Synchronized = None,
    variance: layer_flags.Variance = None,
    group_size: layer_flags.GroupSize = None,
    options_file: layer_flags.OptionsFile = None,
    reset: layer_flags.Reset = False,
    no_recognize: flags.NoRecognize = False,
    recognize_affine: flags.RecognizeAffine = False,
    opset: flags.Opset = None,
    input_shape: flags.InputShape = None,
    save_as_external_data: flags.ExternalData = False,
    custom_objects: flags.CustomObjects = None,
    no_verify: flags.NoVerify = False,
    rtol: flags.RelativeTolerance = None,
    atol: flags.AbsoluteTolerance = None,
    seed: flags.Seed = None,
    dry_run: flags.DryRun = False,
    force: flags.Force = False,
    json: flags.Json = None,
    report: flags.Page = None,
    verbose: flags.Verbose = False,
    quiet: flags.Quiet = False,
    time_passes: flags.TimePasses = False,
    print_between_passes: flags.PrintBetweenPasses = False,
) -> None:
    """Turn BatchNormalization into its synchronized training form.

    The result is verified, then written; by default as MODEL.sync.onnx beside MODEL.
    """
    from syncbn_convert.options.rewrites import ConvertOptions, PipelineOptions
    from syncbn_convert.options.toml import options_from, read_options_file

    configs = {
        name: layer_flags.parse_config(value)
        for name, value in {
            "beta_initializer": beta_initializer,
            "gamma_initializer": gamma_initializer,
            "moving_mean_initializer": moving_mean_initializer,
            "moving_variance_initializer": moving_variance_initializer,
            "beta_regularizer": beta_regularizer,
            "gamma_regularizer": gamma_regularizer,
            "beta_constraint": beta_constraint,
            "gamma_constraint": gamma_constraint,
        }.items()
    }
    parameters = {
        "axis": axis,
        "momentum": momentum,
        "pytorch_momentum": pytorch_momentum,
        "epsilon": epsilon,
        "center": center,
        "scale": scale,
        "trainable": trainable,
        "training": training,
        "synchronized": sync,
        "variance": variance,
        "group_size": group_size,
    }
    options = ConvertOptions(
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        freeze=tuple(freeze or ()),
        parameters=options_from({**parameters, **configs}),
        layers=read_options_file(options_file) if options_file else (),
        reset=reset,
        seed=seed or 0,
        recognize=not no_recognize,
        recognize_affine=recognize_affine,
        opset=opset,
        pipeline=PipelineOptions(print_between_passes=print_between_passes),
    )
    _rewrite(
        options,
        _RewriteFlags(
            model=model,
            custom_objects=custom_objects,
            output=output,
            verify=not no_verify,
            verify_options=flags.verify_options(input_shape, rtol=rtol, atol=atol, seed=seed),
            save_as_external_data=save_as_external_data,
            dry_run=dry_run,
            force=force,
            json=json,
            page=report,
            verbose=verbose,
            quiet=quiet,
            time_passes=time_passes,
        ),
    )


@app.command()
def fold(
    model: flags.Model,
    output: flags.Output = None,
    statistics: flags.Statistics = None,
    from_keras: flags.FromKeras = None,
    keep_batchnorm: flags.KeepBatchNorm = False,
    fuse: flags.FuseResult = False,
    opset: flags.Opset = None,
    input_shape: flags.InputShape = None,
    save_as_external_data: flags.ExternalData = False,
    custom_objects: flags.CustomObjects = None,
    no_verify: flags.NoVerify = False,
    rtol: flags.RelativeTolerance = None,
    atol: flags.AbsoluteTolerance = None,
    seed: flags.Seed = None,
    dry_run: flags.DryRun = False,
    force: flags.Force = False,
    json: flags.Json = None,
    report: flags.Page = None,
    verbose: flags.Verbose = False,
    quiet: flags.Quiet = False,
    time_passes: flags.TimePasses = False,
    print_between_passes: flags.PrintBetweenPasses = False,
) -> None:
    """Turn the training form back into inference BatchNormalization.

    With --statistics or --from-keras, MODEL may be in inference form too. The result is verified,
    then written; by default as MODEL.deploy.onnx beside MODEL.
    """
    from syncbn_convert.options.rewrites import FoldOptions, PipelineOptions

    _rewrite(
        FoldOptions(
            opset=opset,
            statistics=statistics,
            from_keras=from_keras,
            keep_batchnorm=keep_batchnorm,
            fuse=fuse,
            pipeline=PipelineOptions(print_between_passes=print_between_passes),
        ),
        _RewriteFlags(
            model=model,
            custom_objects=custom_objects,
            output=output,
            verify=not no_verify,
            verify_options=flags.verify_options(input_shape, rtol=rtol, atol=atol, seed=seed),
            save_as_external_data=save_as_external_data,
            dry_run=dry_run,
            force=force,
            json=json,
            page=report,
            verbose=verbose,
            quiet=quiet,
            time_passes=time_passes,
        ),
    )


@app.command()
def fuse(
    model: flags.Model,
    output: flags.Output = None,
    input_shape: flags.InputShape = None,
    save_as_external_data: flags.ExternalData = False,
    custom_objects: flags.CustomObjects = None,
    no_verify: flags.NoVerify = False,
    rtol: flags.RelativeTolerance = None,
    atol: flags.AbsoluteTolerance = None,
    seed: flags.Seed = None,
    dry_run: flags.DryRun = False,
    force: flags.Force = False,
    json: flags.Json = None,
    report: flags.Page = None,
    verbose: flags.Verbose = False,
    quiet: flags.Quiet = False,
    time_passes: flags.TimePasses = False,
    print_between_passes: flags.PrintBetweenPasses = False,
) -> None:
    """Let inference BatchNormalization disappear into the weights around it.

    The result is verified, then written; by default as MODEL.fused.onnx beside MODEL.
    """
    from syncbn_convert.options.rewrites import FuseOptions, PipelineOptions

    _rewrite(
        FuseOptions(pipeline=PipelineOptions(print_between_passes=print_between_passes)),
        _RewriteFlags(
            model=model,
            custom_objects=custom_objects,
            output=output,
            verify=not no_verify,
            verify_options=flags.verify_options(input_shape, rtol=rtol, atol=atol, seed=seed),
            save_as_external_data=save_as_external_data,
            dry_run=dry_run,
            force=force,
            json=json,
            page=report,
            verbose=verbose,
            quiet=quiet,
            time_passes=time_passes,
        ),
    )


@app.command()
def inspect(
    model: flags.Model, custom_objects: flags.CustomObjects = None, json: flags.Json = None
) -> None:
    """List normalization nodes, and why some cannot be converted."""
    from syncbn_convert import keras
    from syncbn_convert.commands import rewrites as api

    terminal.configure_logging(verbose=False)
    with (
        keras.custom_objects(*(custom_objects or ())),
        terminal.progress(str(model), enabled=True),
    ):
        report = api.inspect(model)
    if json is not None:
        serialization.write_json(serialization.report_to_dict(report), json)
    if json != flags.STANDARD_OUTPUT:
        terminal.print_tables(*tables.inspect_tables(report))


@app.command()
def verify(
    reference: Annotated[
        Path, typer.Argument(metavar="REFERENCE", help="The model that is right.")
    ],
    candidate: Annotated[
        Path, typer.Argument(metavar="CANDIDATE", help="The model that is compared with it.")
    ],
    rtol: flags.RelativeTolerance = None,
    atol: flags.AbsoluteTolerance = None,
    seed: flags.Seed = None,
    input_shape: flags.InputShape = None,
    data: flags.Data = None,
    custom_objects: flags.CustomObjects = None,
    json: flags.Json = None,
    report: flags.Page = None,
    quiet: flags.Quiet = False,
) -> None:
    """Compare two models on ONNX Runtime; exit code 1 if unequal."""
    from syncbn_convert import keras
    from syncbn_convert.commands import rewrites as api

    terminal.configure_logging(verbose=False)
    options = flags.verify_options(input_shape, rtol=rtol, atol=atol, seed=seed, data=data)
    with (
        keras.custom_objects(*(custom_objects or ())),
        terminal.progress(str(candidate), enabled=not quiet),
    ):
        page = PageWriter(report, reference)
        found = api.verify(reference, candidate, options)
    page.write(found, candidate)
    if json is not None:
        serialization.write_json(serialization.report_to_dict(found), json)
    if json != flags.STANDARD_OUTPUT and not quiet:
        terminal.print_tables(*tables.verify_tables(found))
    if not found.equal:
        raise typer.Exit(1)


app.command()(replica_commands.calibrate)
app.command()(replica_commands.unfuse)
app.command()(statistics_command.statistics)
app.command()(train_commands.step)
app.command()(train_commands.train)


def _rewrite(options: ConvertOptions | FoldOptions | FuseOptions, given: _RewriteFlags) -> None:
    from syncbn_convert import keras
    from syncbn_convert.commands import rewrites as api
    from syncbn_convert.options.rewrites import ConvertOptions, FoldOptions

    terminal.configure_logging(verbose=given.verbose)
    enabled = not (given.quiet or given.verbose)
    with (
        keras.custom_objects(*(given.custom_objects or ())),
        terminal.progress(str(given.model), enabled=enabled) as progress,
    ):
        page = PageWriter(given.page, given.model)
        common: dict[str, Any] = {
            "verify": given.verify,
            "verify_options": given.verify_options,
            "force": given.force,
            "dry_run": given.dry_run,
            "save_as_external_data": given.save_as_external_data,
            "progress": progress,
        }
        if isinstance(options, ConvertOptions):
            output, report = api.convert_file(given.model, given.output, options, **common)
        elif isinstance(options, FoldOptions):
            output, report = api.fold_file(given.model, given.output, options, **common)
        else:
            output, report = api.fuse_file(given.model, given.output, options, **common)
    page.write(report, output)
    _print_rewrite(report, output, given)


def _print_rewrite(report: RewriteReport, output: Path | None, given: _RewriteFlags) -> None:
    if given.time_passes:
        sys.stderr.write(terminal.render(sys.stderr, *tables.timing_tables(report.timings)))
    if given.json is not None:
        content = serialization.rewrite_to_dict(report, given.model, output)
        serialization.write_json(content, given.json)
    if given.json != flags.STANDARD_OUTPUT and not given.quiet:
        terminal.print_tables(*tables.rewrite_tables(report, output, dry_run=given.dry_run))
