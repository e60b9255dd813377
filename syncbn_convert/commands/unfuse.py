"""`unfuse`: normalization given back to a model where it was fused away."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from syncbn_convert.commands.run import Result, check_rise, require_matches
from syncbn_convert.errors import ConversionError
from syncbn_convert.files import model_file, staging
from syncbn_convert.files.model_file import Model, ModelLike
from syncbn_convert.form import provenance, training_form
from syncbn_convert.graph import graphs, random_nodes
from syncbn_convert.keras import reading
from syncbn_convert.keras.reading import Source
from syncbn_convert.options.calibrating import CalibrateOptions
from syncbn_convert.options.replicas import ReplicaOptions
from syncbn_convert.options.rewrites import UnfuseOptions
from syncbn_convert.options.verifying import Verifying, VerifyOptions
from syncbn_convert.options.writing import OutputOptions
from syncbn_convert.page.writer import PageWriter
from syncbn_convert.passes import recipes
from syncbn_convert.reports import Record, RewriteReport
from syncbn_convert.rewriting import pipeline
from syncbn_convert.runtime.calibration import Calibration, ShowBatch
from syncbn_convert.runtime.datasets import Data, open_dataset
from syncbn_convert.runtime.replica_run import ReplicaJob, ReplicaRun
from syncbn_convert.verification import verdicts

_Statistics = dict[str, tuple[Any, Any]]


def unfuse(
    model: ModelLike,
    data: Data,
    options: UnfuseOptions = UnfuseOptions(),
    *,
    replicas: ReplicaOptions = ReplicaOptions(),
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
) -> Model:
    """Return `model` with a BatchNormalization after its layers, the function unchanged.

    Args:
        model: A model in inference form; not changed.
        data: What statistics are measured on; see `datasets.open_dataset`.
        options: Which layers, and how.
        replicas: Where and on how many replicas.
        verify: Whether a model whose opset has to rise for that is compared with what it was.
        verify_options: Feeds and tolerances of that.

    Raises:
        SyncBNError: if there is no such layer, or the model, the data or a replica fails.
    """
    with ReplicaRun(replicas) as run:
        verifying = Verifying.given(verify and run.writes, verify_options)

        def prepare() -> tuple[Source, ReplicaJob]:
            source = reading.read(model)
            job = _job(source.model, data, options, run)
            check_rise(source, job.form, verifying)
            return source, job

        source, job = run.together(prepare)
        found = run.calibrate(job, _measuring(options), None)
    _insert(source.model, options, _statistics(job.form, found))
    return source.like(source.model)


def unfuse_file(
    input: str | os.PathLike[str],  # noqa: A002
    data: Data,
    output: str | os.PathLike[str] | None = None,
    options: UnfuseOptions = UnfuseOptions(),
    *,
    replicas: ReplicaOptions = ReplicaOptions(),
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
    force: bool = False,
    progress: ShowBatch | None = None,
) -> tuple[Path, RewriteReport] | None:
    """Unfuse a file into another (default `<name>.unfused.onnx`); only replica 0 writes.

    Returns:
        The path written and what was done; None on other replicas.

    Raises:
        SyncBNError: as `unfuse`; nothing is written then.
    """
    result = run(
        Path(input),
        data,
        options,
        OutputOptions(output=None if output is None else Path(output), force=force),
        Verifying.given(verify, verify_options),
        replicas=replicas,
        show_batch=progress,
    )
    if result is None:
        return None
    assert result.output is not None
    return result.output, result.report


def run(
    path: Path,
    data: Data,
    options: UnfuseOptions = UnfuseOptions(),
    writing: OutputOptions = OutputOptions(),
    verifying: Verifying = Verifying(),
    *,
    replicas: ReplicaOptions = ReplicaOptions(),
    page: Path | None = None,
    show_batch: ShowBatch | None = None,
) -> Result[RewriteReport] | None:
    """Unfuse a file into another (default `<name>.unfused.onnx`); replicas but 0 return None.

    Raises:
        SyncBNError: as `unfuse`; nothing is written then.
    """
    start = time.perf_counter()
    target = writing.output or staging.default_output(path, "unfused")
    with contextlib.ExitStack() as outputs:
        with ReplicaRun(replicas) as replica_run:
            writes = replica_run.writes
            pages = PageWriter(page if writes else None)

            def prepare() -> tuple[Source, ReplicaJob, staging.StagedOutput | None]:
                staged = None
                if writes:
                    place = staging.stage_output(target, inputs=[path], force=writing.force)
                    staged = outputs.enter_context(place)
                source = reading.read(path, mapped=True)
                pages.take(source.model, path)
                job = _job(source.model, data, options, replica_run)
                if writes:
                    check_rise(source, job.form, verifying)
                return source, job, staged

            source, job, staged = replica_run.together(prepare)
            found = replica_run.calibrate(job, _measuring(options), show_batch)
        if staged is None:
            return None
        verdict = None
        with tempfile.TemporaryDirectory() as folder:
            original = source.in_file(Path(folder))
            records = _insert(source.model, options, _statistics(job.form, found))
            model_file.write_model(source.model, staged.path, data=staged.data)
            if verifying.verify:
                verdict = verdicts.verify_same_function(original, staged.path, verifying)
            staged.commit()
        report = RewriteReport(
            command="unfuse",
            found=len(records),
            converted=sum(record.action == "inserted" for record in records),
            records=records,
            all_reduces=0,
            verified=verdict is not None,
            max_relative_error=verdict.max_relative_error if verdict else None,
            tolerance=verdict.tolerance if verdict else None,
            seconds=time.perf_counter() - start,
            outputs=list(verdict.outputs) if verdict else [],
            notes=[
                f"statistics of {found.samples} samples in {found.batches} batches",
                *model_file.notes_of(source.model),
                *random_nodes.note(source.model),
                *(verdict.notes if verdict else ()),
            ],
        )
        pages.write(report, target)
        return Result(report=report, files={"input": path, "output": target})


def _job(original: ir.Model, data: Data, options: UnfuseOptions, run: ReplicaRun) -> ReplicaJob:
    """Let nodes on the side observe the values, in a copy that is otherwise as it was."""
    model = model_file.as_model(original)
    if training_form.nodes(model) or provenance.unsynchronized(model):
        raise ConversionError("the model is a training form; fold it first")
    records = _insert(model, options)
    _check(options, records)
    places = [record.node for record in records if record.action == "inserted"]
    form = recipes.to_form(
        model, include=tuple(f"^{re.escape(name)}/batchnorm$" for name in places)
    )
    loaded = run.load(form)
    return ReplicaJob(form, False, loaded, open_dataset(data, loaded.inputs))


def _insert(
    model: ir.Model, options: UnfuseOptions, statistics: _Statistics | None = None
) -> list[Record]:
    done = pipeline.run(model, recipes.unfusing(options, statistics))
    return done.records["insert_batchnorm"]


def _check(options: UnfuseOptions, records: Sequence[Record]) -> None:
    if not records:
        raise ConversionError(
            "nothing to unfuse: the model holds no Conv, ConvTranspose, Gemm or MatMul"
        )
    by_flag = {flag: getattr(options, flag) for flag in ("include", "exclude")}
    require_matches(by_flag, records, "layer")
    if all(record.action == "skipped" for record in records):
        first = records[0]
        raise ConversionError(
            f"none of the {len(records)} layers can be given a normalization; "
            f"'{first.node}': {first.reason}"
        )


def _measuring(options: UnfuseOptions) -> CalibrateOptions:
    return CalibrateOptions(batch_size=options.batch_size, batches=options.batches)


def _statistics(form: ir.Model, found: Calibration) -> _Statistics:
    """Return mean and variance of each value by the name of its node."""
    statistics: _Statistics = {}
    for node in training_form.nodes(form):
        mean, var = (value for value in node.inputs[3:5] if value is not None)
        statistics[graphs.label(node)] = (
            found.statistics[str(mean.name)].astype("float64"),
            found.statistics[str(var.name)].astype("float64"),
        )
    return statistics
