"""The commands as Python calls.

A model is a path, an `onnx.ModelProto`, an `onnx_ir.Model` or a `keras.Model`. It is never changed;
what comes back is a protobuf for a protobuf and an `onnx_ir.Model` otherwise.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TypeVar

import onnx
import onnx_ir as ir

from syncbn_convert.commands import inspect as inspection
from syncbn_convert.commands.job import Progress, RewriteJob, RewriteOptions, silent
from syncbn_convert.errors import UsageError
from syncbn_convert.files import model_file, staging
from syncbn_convert.files.model_file import ModelLike
from syncbn_convert.keras import reading
from syncbn_convert.options.rewrites import ConvertOptions, FoldOptions, FuseOptions
from syncbn_convert.reports import InspectReport, RewriteReport, VerifyReport
from syncbn_convert.verification import VerifyOptions, verify_files

Model = onnx.ModelProto | ir.Model
_Options = TypeVar("_Options", ConvertOptions, FoldOptions, FuseOptions)


def convert(
    model: ModelLike,
    options: ConvertOptions = ConvertOptions(),
    *,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
) -> Model:
    """Return the synchronized training form of `model`; see `convert_with_report`."""
    return convert_with_report(model, options, verify=verify, verify_options=verify_options)[0]


def convert_with_report(
    model: ModelLike,
    options: ConvertOptions = ConvertOptions(),
    *,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
    progress: Progress | None = None,
) -> tuple[Model, RewriteReport]:
    """Turn the BatchNormalization nodes of `model` into their synchronized training form.

    Args:
        model: What to convert; not changed.
        options: Which nodes, and how.
        verify: Whether to run the result on ONNX Runtime against its original.
        verify_options: Feeds and tolerances of that.
        progress: Called with the name of each stage as it begins.

    Returns:
        The training form in the type that came in, and what was done.

    Raises:
        ConversionError: if there is nothing that can be converted as asked.
        VerificationError: if the result is not what the runtime says it should be.
        ModelFileError: if `model` cannot be read or is malformed.
    """
    options = _of_kind(options, ConvertOptions)
    return _rewrite_in_memory(model, options, verify, verify_options, progress)


def fold(
    model: ModelLike,
    options: FoldOptions = FoldOptions(),
    *,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
) -> Model:
    """Return the inference form of `model`; see `fold_with_report`."""
    return fold_with_report(model, options, verify=verify, verify_options=verify_options)[0]


def fold_with_report(
    model: ModelLike,
    options: FoldOptions = FoldOptions(),
    *,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
    progress: Progress | None = None,
) -> tuple[Model, RewriteReport]:
    """Turn a training form, or a model left in training mode, into inference form.

    Arguments, results and errors are those of `convert_with_report`.
    """
    options = _of_kind(options, FoldOptions)
    return _rewrite_in_memory(model, options, verify, verify_options, progress)


def fuse(
    model: ModelLike,
    options: FuseOptions = FuseOptions(),
    *,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
) -> Model:
    """Return `model` with its normalization in the weights; see `fuse_with_report`."""
    return fuse_with_report(model, options, verify=verify, verify_options=verify_options)[0]


def fuse_with_report(
    model: ModelLike,
    options: FuseOptions = FuseOptions(),
    *,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
    progress: Progress | None = None,
) -> tuple[Model, RewriteReport]:
    """Let BatchNormalization in inference mode disappear into the weights around it.

    Arguments, results and errors are those of `convert_with_report`.
    """
    options = _of_kind(options, FuseOptions)
    return _rewrite_in_memory(model, options, verify, verify_options, progress)


def convert_file(
    input: str | os.PathLike[str],  # noqa: A002
    output: str | os.PathLike[str] | None = None,
    options: ConvertOptions = ConvertOptions(),
    *,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
    force: bool = False,
    dry_run: bool = False,
    save_as_external_data: bool = False,
    progress: Progress | None = None,
) -> tuple[Path | None, RewriteReport]:
    """Convert a file into another, which appears whole and verified or not at all.

    Args:
        input: The model file.
        output: The file to write; None writes `<name>.sync.onnx` beside the input.
        options: Which nodes, and how.
        verify: Whether to run the result on ONNX Runtime against its original.
        verify_options: Feeds and tolerances of that.
        force: Whether `output` may exist, or be the input.
        dry_run: Whether to write nothing.
        save_as_external_data: Whether to put weights into a file of their own.
        progress: Called with the name of each stage as it begins.

    Returns:
        The path written (None for a dry run), and what was done.

    Raises:
        UsageError: if `output` exists or is the input and `force` is not given.
        SyncBNError: as `convert_with_report`; nothing is written then.
    """
    target = Path(output or staging.default_output(Path(input), "sync"))
    job = RewriteJob(_of_kind(options, ConvertOptions), verify, verify_options, progress or silent)
    return _rewrite_file(job, Path(input), target, force, dry_run, save_as_external_data)


def fold_file(
    input: str | os.PathLike[str],  # noqa: A002
    output: str | os.PathLike[str] | None = None,
    options: FoldOptions = FoldOptions(),
    *,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
    force: bool = False,
    dry_run: bool = False,
    save_as_external_data: bool = False,
    progress: Progress | None = None,
) -> tuple[Path | None, RewriteReport]:
    """Fold a file into another (default `<name>.deploy.onnx`); otherwise as `convert_file`."""
    target = Path(output or staging.default_output(Path(input), "deploy"))
    job = RewriteJob(_of_kind(options, FoldOptions), verify, verify_options, progress or silent)
    return _rewrite_file(job, Path(input), target, force, dry_run, save_as_external_data)


def fuse_file(
    input: str | os.PathLike[str],  # noqa: A002
    output: str | os.PathLike[str] | None = None,
    options: FuseOptions = FuseOptions(),
    *,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
    force: bool = False,
    dry_run: bool = False,
    save_as_external_data: bool = False,
    progress: Progress | None = None,
) -> tuple[Path | None, RewriteReport]:
    """Fuse a file into another (default `<name>.fused.onnx`); otherwise as `convert_file`."""
    target = Path(output or staging.default_output(Path(input), "fused"))
    job = RewriteJob(_of_kind(options, FuseOptions), verify, verify_options, progress or silent)
    return _rewrite_file(job, Path(input), target, force, dry_run, save_as_external_data)


def inspect(model: ModelLike) -> InspectReport:
    """List the normalization nodes of `model`, and why a node cannot be converted.

    Raises:
        ModelFileError: if `model` cannot be read or is malformed.
    """
    return inspection.inspect(reading.as_model(model))


def verify(
    reference: ModelLike, candidate: ModelLike, options: VerifyOptions = VerifyOptions()
) -> VerifyReport:
    """Compare two models on ONNX Runtime: interface first, then values.

    Raises:
        ModelFileError: if a model cannot be read or is malformed.
        VerificationError: if the runtime cannot run the reference.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            reading.as_file(model, Path(folder) / name)
            for model, name in ((reference, "reference.onnx"), (candidate, "candidate.onnx"))
        ]
        return verify_files(paths[0], paths[1], options)


def _of_kind(options: _Options, kind: type[_Options]) -> _Options:
    if not isinstance(options, kind):
        raise UsageError(f"options must be {kind.__name__}, not {type(options).__name__}")
    return options


def _rewrite_in_memory(
    argument: ModelLike,
    options: RewriteOptions,
    verify: bool,
    verify_options: VerifyOptions,
    progress: Progress | None,
) -> tuple[Model, RewriteReport]:
    start = time.perf_counter()
    job = RewriteJob(options, verify, verify_options, progress or silent)
    source = job.imported(argument)
    with job.stage("read"):
        model = reading.as_model(source)
    with tempfile.TemporaryDirectory() as folder:
        original = reading.as_file(source, Path(folder) / "original.onnx") if verify else Path()
        result = job.rewrite(model)
        job.check(model)
        staged = Path(folder) / "result.onnx"
        if verify:
            model_file.write_model(model, staged)
        verdict = job.verify_file(original, staged)
    report = job.report(model, result, verdict, time.perf_counter() - start)
    return model_file.like_argument(model, argument), report


def _rewrite_file(
    job: RewriteJob,
    source: Path,
    target: Path,
    force: bool,
    dry_run: bool,
    save_as_external_data: bool,
) -> tuple[Path | None, RewriteReport]:
    start = time.perf_counter()
    if dry_run:
        return None, _dry_run(job, source, start)
    with (
        staging.stage_output(target, inputs=[source], force=force) as staged,
        tempfile.TemporaryDirectory() as folder,
    ):
        readable = job.imported(source)
        with job.stage("read"):
            original = reading.as_file(readable, Path(folder) / "original.onnx")
            model = model_file.map_model(original)
        result = job.rewrite(model)
        with job.stage("write"):
            model_file.write_model(
                model,
                staged.path,
                save_as_external_data=save_as_external_data,
                data=staged.data,
            )
        with job.stage("check"), staged.flushed_meanwhile():
            model_file.check_file(staged.path)
        verdict = job.verify_file(original, staged.path)
        staged.commit()
    return target, job.report(model, result, verdict, time.perf_counter() - start)


def _dry_run(job: RewriteJob, source: Path, start: float) -> RewriteReport:
    with job.stage("read"):
        model = reading.map_model(source)
    result = job.rewrite(model)
    job.check(model)
    return job.report(model, result, None, time.perf_counter() - start)
