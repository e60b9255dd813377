"""The commands as Python calls.

A model is a path, an `onnx.ModelProto` or an `onnx_ir.Model`. It is never changed; what comes back
is a protobuf for a protobuf and an `onnx_ir.Model` otherwise.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir

from syncbn_convert import (
    graphs,
    inspection,
    model_file,
    pipeline,
    staging,
    statistics,
    training_form,
)
from syncbn_convert.batchnorm import FIRST_OPSET_THAT_RUNS
from syncbn_convert.errors import ConversionError
from syncbn_convert.model_file import ModelLike
from syncbn_convert.options import ConvertOptions, FoldOptions
from syncbn_convert.passes import CanonicalizeBatchNorm, ConvertSyncBatchNorm, FoldMovingStatistics
from syncbn_convert.reports import InspectReport, Record, RewriteReport, VerifyReport
from syncbn_convert.rewriting import RewritePass, matches
from syncbn_convert.verification import VerifyOptions, rewrites, verify_files

Model = onnx.ModelProto | ir.Model
Progress = Callable[[str], None]
Command = Literal["convert", "fold"]


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
    return _rewrite_in_memory("convert", model, options, verify, verify_options, progress)


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
    return _rewrite_in_memory("fold", model, options, verify, verify_options, progress)


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
    job = _Job("convert", options, verify, verify_options, progress or _silent)
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
    job = _Job("fold", options, verify, verify_options, progress or _silent)
    return _rewrite_file(job, Path(input), target, force, dry_run, save_as_external_data)


def inspect(model: ModelLike) -> InspectReport:
    """List the normalization nodes of `model`, and why a node cannot be converted.

    Raises:
        ModelFileError: if `model` cannot be read or is malformed.
    """
    return inspection.inspect(model_file.as_model(model))


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
            _as_file(model, Path(folder) / name)
            for model, name in ((reference, "reference.onnx"), (candidate, "candidate.onnx"))
        ]
        return verify_files(paths[0], paths[1], options)


@dataclasses.dataclass(frozen=True)
class _Job:
    """One run of `convert` or `fold`."""

    command: Command
    options: ConvertOptions | FoldOptions
    verify: bool
    verify_options: VerifyOptions
    progress: Progress
    timings: dict[str, float] = dataclasses.field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.progress(name)
        start = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start

    def rewrite(self, model: ir.Model) -> pipeline.PipelineResult:
        with self.stage("rewrite"):
            _replace_statistics(model, self.options)
            result = pipeline.run(model, self._passes(model), self.options.pipeline)
            self._check_records(result.records)
        self.timings.update(result.timings)
        return result

    def check(self, model: ir.Model) -> None:
        with self.stage("check"):
            model_file.checked(model)

    def verify_file(self, original: Path, result: Path) -> rewrites.Verdict | None:
        if not self.verify:
            return None
        check = rewrites.verify_converted if self.command == "convert" else rewrites.verify_folded
        with self.stage("verify"):
            return check(self._reference(original, result), result, self.verify_options)

    def report(
        self,
        model: ir.Model,
        result: pipeline.PipelineResult,
        verdict: rewrites.Verdict | None,
        seconds: float,
    ) -> RewriteReport:
        earlier = result.records.get("canonicalize_batchnorm", [])
        records = [record for record in earlier if record.action == "skipped"]
        records += result.records[_MAIN_PASS[self.command]]
        return RewriteReport(
            command=self.command,
            found=len(records),
            converted=sum(record.action in ("converted", "folded") for record in records),
            records=records,
            all_reduces=len(training_form.nodes(model)),
            verified=verdict is not None,
            max_relative_error=verdict.max_relative_error if verdict else None,
            tolerance=verdict.tolerance if verdict else None,
            seconds=seconds,
            timings=self.timings,
            notes=[*result.notes, *(verdict.notes if verdict else ())],
        )

    def _reference(self, original: Path, result: Path) -> Path:
        """Return what `result` has to equal: `original`, with the statistics that are given."""
        if _given_statistics(self.options) is None:
            return original
        model = model_file.load_model(original)
        _replace_statistics(model, self.options)
        path = result.with_name(f"source-{result.name}")
        model_file.write_model(model, path)
        return path

    def _passes(self, model: ir.Model) -> Sequence[RewritePass]:
        if isinstance(self.options, ConvertOptions):
            return (
                CanonicalizeBatchNorm(opset=self.options.opset),
                ConvertSyncBatchNorm(
                    include=self.options.include,
                    exclude=self.options.exclude,
                    freeze=self.options.freeze,
                ),
            )
        rises = self.options.opset or graphs.opset_version(model) < FIRST_OPSET_THAT_RUNS
        canonical = (CanonicalizeBatchNorm(opset=self.options.opset),) if rises else ()
        return (*canonical, FoldMovingStatistics())

    def _check_records(self, records: dict[str, list[Record]]) -> None:
        own = records[_MAIN_PASS[self.command]]
        if isinstance(self.options, FoldOptions):
            _check_folded(own)
        else:
            _check_patterns(self.options, own)
            _check_converted(own)


_MAIN_PASS = {"convert": "convert_sync_batchnorm", "fold": "fold_moving_statistics"}


def _silent(stage: str) -> None:
    del stage


def _given_statistics(options: ConvertOptions | FoldOptions) -> Path | None:
    return options.statistics if isinstance(options, FoldOptions) else None


def _replace_statistics(model: ir.Model, options: ConvertOptions | FoldOptions) -> None:
    """Put the statistics that are given into `model`, converted on the way, in place."""
    path = _given_statistics(options)
    if path is not None:
        from syncbn_convert.calibrate_api import to_form

        statistics.apply_to_form(statistics.load(path), to_form(model))


def _check_folded(records: list[Record]) -> None:
    if not records:
        raise ConversionError(
            "nothing to fold: the model holds no SyncBatchNormalization and no "
            "BatchNormalization in training mode; it is in inference form already"
        )
    if not any(record.action == "folded" for record in records):
        raise ConversionError(
            f"none of the {len(records)} nodes can be folded; '{records[0].node}': "
            f"{records[0].reason}"
        )


def _check_patterns(options: ConvertOptions, records: list[Record]) -> None:
    if not records:
        raise ConversionError(
            "the model holds no BatchNormalization; see 'syncbn-convert inspect MODEL' for what "
            "it holds"
        )
    for flag in ("include", "exclude", "freeze"):
        for pattern in getattr(options, flag):
            if not any(matches((pattern,), record.node) for record in records):
                raise ConversionError(
                    f"--{flag} '{pattern}' matches no BatchNormalization; the first of "
                    f"{len(records)} is named '{records[0].node}'"
                )


def _check_converted(records: list[Record]) -> None:
    if not any(record.action in ("converted", "frozen") for record in records):
        raise ConversionError(
            f"none of the {len(records)} BatchNormalization nodes can be converted; "
            f"'{records[0].node}': {records[0].reason}"
        )


def _as_file(model: ModelLike, path: Path) -> Path:
    if isinstance(model, str | os.PathLike):
        return Path(model)
    model_file.write_model(model_file.as_model(model), path)
    return path


def _rewrite_in_memory(
    command: Command,
    argument: ModelLike,
    options: ConvertOptions | FoldOptions,
    verify: bool,
    verify_options: VerifyOptions,
    progress: Progress | None,
) -> tuple[Model, RewriteReport]:
    start = time.perf_counter()
    job = _Job(command, options, verify, verify_options, progress or _silent)
    with job.stage("read"):
        model = model_file.as_model(argument)
    with tempfile.TemporaryDirectory() as folder:
        original = _as_file(argument, Path(folder) / "original.onnx") if verify else Path()
        result = job.rewrite(model)
        job.check(model)
        staged = Path(folder) / "result.onnx"
        if verify:
            model_file.write_model(model, staged)
        verdict = job.verify_file(original, staged)
    report = job.report(model, result, verdict, time.perf_counter() - start)
    return model_file.like_argument(model, argument), report


def _rewrite_file(
    job: _Job,
    source: Path,
    target: Path,
    force: bool,
    dry_run: bool,
    save_as_external_data: bool,
) -> tuple[Path | None, RewriteReport]:
    start = time.perf_counter()
    if dry_run:
        return None, _dry_run(job, source, start)
    with staging.stage_output(target, inputs=[source], force=force) as staged:
        with job.stage("read"):
            model = model_file.load_model(source)
        result = job.rewrite(model)
        with job.stage("write"):
            model_file.write_model(model, staged.path, save_as_external_data=save_as_external_data)
        with job.stage("check"):
            model_file.check_file(staged.path)
        verdict = job.verify_file(source, staged.path)
        staged.commit()
    return target, job.report(model, result, verdict, time.perf_counter() - start)


def _dry_run(job: _Job, source: Path, start: float) -> RewriteReport:
    with job.stage("read"):
        model = model_file.load_model(source)
    result = job.rewrite(model)
    job.check(model)
    return job.report(model, result, None, time.perf_counter() - start)
