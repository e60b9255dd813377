"""`unfuse`: normalization given back to a model where it was fused away."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from pathlib import Path
from typing import Any

import onnx_ir as ir

from syncbn_convert.errors import ConversionError, UsageError
from syncbn_convert.files import model_file, staging
from syncbn_convert.files.model_file import ModelLike
from syncbn_convert.form import provenance, training_form
from syncbn_convert.graph import graphs
from syncbn_convert.keras import reading
from syncbn_convert.passes import InsertBatchNorm
from syncbn_convert.passes.recipes import to_form
from syncbn_convert.reports import RewriteReport
from syncbn_convert.rewriting import RewriteResult, matches
from syncbn_convert.runtime.calibration import CalibrateOptions, Calibration, Progress
from syncbn_convert.runtime.datasets import Source, open_dataset
from syncbn_convert.runtime.run import ReplicaJob, ReplicaOptions, ReplicaRun
from syncbn_convert.runtime.session import LoadedForm
from syncbn_convert.verification import VerifyOptions, rewrites


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnfuseOptions:
    """What `unfuse` does.

    Attributes:
        include: Regular expressions searched in node names; only matching nodes get a
            normalization. Empty means all.
        exclude: Regular expressions; matching nodes get none.
        epsilon: Of the new nodes; above 0.
        momentum: Of the new nodes, from 0 to 1.
        batch_size: Samples in one global batch.
        batches: Batches to measure on; None takes all data.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    epsilon: float = 1e-3
    momentum: float = 0.99
    batch_size: int = 32
    batches: int | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range, and what is not a regular expression."""
        if not 0 < self.epsilon < float("inf") or not 0 <= self.momentum <= 1:
            raise UsageError(
                f"epsilon {self.epsilon:g}, momentum {self.momentum:g}: give an epsilon above 0 "
                "and a momentum from 0 to 1"
            )
        for pattern in (*self.include, *self.exclude):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UsageError(
                    f"'{pattern}' is not a regular expression: {error}; escape special characters"
                ) from error

    def insertion(self, **given: Any) -> InsertBatchNorm:
        """Return the pass with these options."""
        return InsertBatchNorm(
            include=self.include,
            exclude=self.exclude,
            epsilon=self.epsilon,
            momentum=self.momentum,
            **given,
        )


def unfuse(
    model: ModelLike,
    data: Source,
    options: UnfuseOptions = UnfuseOptions(),
    *,
    replicas: ReplicaOptions = ReplicaOptions(),
) -> ir.Model | Any:
    """Return `model` with a BatchNormalization after its layers, the function unchanged.

    Args:
        model: A model in inference form; not changed.
        data: What statistics are measured on; see `datasets.open_dataset`.
        options: Which layers, and how.
        replicas: Where and on how many replicas.

    Raises:
        SyncBNError: if there is no such layer, or the model, the data or a replica fails.
    """
    with ReplicaRun(replicas) as run:
        job = run.together(lambda: _job(reading.as_model(model), data, options, run))
        found = run.calibrate(job, _measuring(options), None)
    result = reading.as_model(model)
    options.insertion(statistics=_statistics(job.form, found))(result)
    return model_file.like_argument(result, model)


def unfuse_file(
    input: Path,  # noqa: A002
    data: Source,
    output: str | os.PathLike[str] | None = None,
    options: UnfuseOptions = UnfuseOptions(),
    *,
    replicas: ReplicaOptions = ReplicaOptions(),
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
    force: bool = False,
    progress: Progress | None = None,
) -> tuple[Path, RewriteReport] | None:
    """Unfuse a file into another (default `<name>.unfused.onnx`); only replica 0 writes.

    Returns:
        The path written and what was done; None on other replicas.

    Raises:
        SyncBNError: as `unfuse`; nothing is written then.
    """
    start = time.perf_counter()
    target = Path(output or staging.default_output(input, "unfused"))
    with ReplicaRun(replicas) as run:

        def prepare() -> ReplicaJob:
            staging.check_outputs([target] if run.writes else [], inputs=[input], force=force)
            return _job(reading.map_model(input), data, options, run)

        job = run.together(prepare)
        found = run.calibrate(job, _measuring(options), progress)
    if not run.writes:
        return None
    result = reading.map_model(input)
    done = options.insertion(statistics=_statistics(job.form, found))(result)
    assert isinstance(done, RewriteResult)
    verdict = None
    with staging.stage_output(target, inputs=[input], force=force) as staged:
        model_file.write_model(result, staged.path, data=staged.data)
        if verify:
            own = staged.path.with_name(f"original-{staged.path.name}")
            original = reading.as_file(input, own)
            verdict = rewrites.verify_same_function(original, staged.path, verify_options)
        staged.commit()
    return target, RewriteReport(
        command="unfuse",
        found=len(done.records),
        converted=sum(record.action == "inserted" for record in done.records),
        records=done.records,
        all_reduces=0,
        verified=verdict is not None,
        max_relative_error=verdict.max_relative_error if verdict else None,
        tolerance=verdict.tolerance if verdict else None,
        seconds=time.perf_counter() - start,
        outputs=list(verdict.outputs) if verdict else [],
        notes=[f"statistics of {found.samples} samples in {found.batches} batches"],
    )


def _job(model: ir.Model, data: Source, options: UnfuseOptions, run: ReplicaRun) -> ReplicaJob:
    """Let nodes on the side observe the values, in a model that is otherwise as it was."""
    if training_form.nodes(model) or provenance.unsynchronized(model):
        raise ConversionError("the model is a training form; fold it first")
    done = options.insertion()(model)
    assert isinstance(done, RewriteResult)
    places = [record for record in done.records if record.action == "inserted"]
    _check(options, done)
    names = tuple(f"^{re.escape(record.node)}/batchnorm$" for record in places)
    form = to_form(model, include=names)
    threads = run.options.threads(run.local_size)
    loaded = LoadedForm(form, threads, alone=run.size == 1)
    return ReplicaJob(form, False, loaded, open_dataset(data, loaded.input_names))


def _check(options: UnfuseOptions, done: RewriteResult) -> None:
    if not done.records:
        raise ConversionError(
            "nothing to unfuse: the model holds no Conv, ConvTranspose, Gemm or MatMul"
        )
    for flag in ("include", "exclude"):
        for pattern in getattr(options, flag):
            if not any(matches((pattern,), record.node) for record in done.records):
                raise ConversionError(
                    f"--{flag} '{pattern}' matches no layer; the first of {len(done.records)} is "
                    f"named '{done.records[0].node}'"
                )
    if all(record.action == "skipped" for record in done.records):
        first = done.records[0]
        raise ConversionError(
            f"none of the {len(done.records)} layers can be given a normalization; "
            f"'{first.node}': {first.reason}"
        )


def _measuring(options: UnfuseOptions) -> CalibrateOptions:
    return CalibrateOptions(batch_size=options.batch_size, batches=options.batches)


def _statistics(form: ir.Model, found: Calibration) -> dict[str, tuple[Any, Any]]:
    """Return mean and variance of each value by the name of its node."""
    statistics: dict[str, tuple[Any, Any]] = {}
    for node in training_form.nodes(form):
        mean, var = (value for value in node.inputs[3:5] if value is not None)
        statistics[graphs.label(node)] = (
            found.statistics[str(mean.name)].astype("float64"),
            found.statistics[str(var.name)].astype("float64"),
        )
    return statistics
