"""`calibrate`: moving statistics re-estimated on data."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.commands.run import Result, check_rise
from syncbn_convert.errors import UsageError
from syncbn_convert.files import model_file, staging
from syncbn_convert.files.model_file import Model, ModelLike
from syncbn_convert.form import moving_statistics
from syncbn_convert.form.moving_statistics import Statistics
from syncbn_convert.form.stateful_layers import layers_of
from syncbn_convert.graph import random_nodes
from syncbn_convert.keras import reading
from syncbn_convert.keras.reading import Source
from syncbn_convert.options.calibrating import CalibrateOptions
from syncbn_convert.options.replicas import ReplicaOptions
from syncbn_convert.options.verifying import Verifying, VerifyOptions
from syncbn_convert.options.writing import CalibrationOutput
from syncbn_convert.page.writer import PageWriter
from syncbn_convert.passes import recipes
from syncbn_convert.reports import CalibrateReport, LayerChange
from syncbn_convert.runtime.calibration import Calibration, ShowBatch
from syncbn_convert.runtime.datasets import Data
from syncbn_convert.runtime.replica_run import ReplicaJob, ReplicaRun
from syncbn_convert.verification import verdicts

Array = npt.NDArray[Any]


def calibrate(
    model: ModelLike,
    data: Data,
    options: CalibrateOptions = CalibrateOptions(),
    *,
    replicas: ReplicaOptions = ReplicaOptions(),
    fold: bool = False,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
) -> Model:
    """Return `model` with statistics estimated on `data`; see `calibrate_with_report`."""
    return calibrate_with_report(
        model,
        data,
        options,
        replicas=replicas,
        fold=fold,
        verify=verify,
        verify_options=verify_options,
    )[0]


def calibrate_with_report(
    model: ModelLike,
    data: Data,
    options: CalibrateOptions = CalibrateOptions(),
    *,
    replicas: ReplicaOptions = ReplicaOptions(),
    fold: bool = False,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
    progress: ShowBatch | None = None,
) -> tuple[Model, CalibrateReport]:
    """Re-estimate the moving statistics of a model on data.

    Args:
        model: A training form, or any model with BatchNormalization; not changed.
        data: See `datasets.open_dataset`.
        options: How statistics are estimated.
        replicas: Where and on how many replicas.
        fold: Whether a training form comes back in inference form.
        verify: Whether a model whose opset had to rise is compared with what it was.
        verify_options: Feeds and tolerances of that.
        progress: Called after each batch on replica 0.

    Returns:
        A training form for a training form (without `fold`), else the inference form; in the type
        that came in; and what moved.

    Raises:
        SyncBNError: if the model, the data or a replica fails.
    """
    start = time.perf_counter()
    with ReplicaRun(replicas) as run:
        verifying = Verifying.given(verify and run.writes, verify_options)

        def prepare() -> tuple[Source, ReplicaJob, tuple[str, ...]]:
            source = reading.read(model)
            job = run.job(source.model, data)
            return source, job, check_rise(source, job.form, verifying)

        source, job, notes = run.together(prepare)
        found = run.calibrate(job, options, progress)
    report = _finish(job.form, found, run, options, start)
    report = dataclasses.replace(report, notes=[*report.notes, *job.dataset.notes, *notes])
    if fold or not job.came_as_form:
        recipes.to_inference(job.form)
    return source.like(job.form), report


def calibrate_file(
    input: str | os.PathLike[str],  # noqa: A002
    data: Data,
    output: Path | None,
    options: CalibrateOptions = CalibrateOptions(),
    *,
    replicas: ReplicaOptions = ReplicaOptions(),
    fold: bool = False,
    statistics_out: Path | None = None,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
    force: bool = False,
    progress: ShowBatch | None = None,
) -> CalibrateReport | None:
    """Calibrate a file into another; replica 0 writes, the others return None.

    Args:
        input: The model file.
        data: See `datasets.open_dataset`.
        output: The file to write; None writes no model.
        options: How statistics are estimated.
        replicas: Where and on how many replicas.
        fold: Whether a training form comes out in inference form.
        statistics_out: `.safetensors` file for the statistics; None writes none.
        verify: Whether to run the result on ONNX Runtime against what it came from.
        verify_options: Feeds and tolerances of that.
        force: Whether outputs may exist.
        progress: Called after each batch on replica 0.

    Raises:
        SyncBNError: if the model, the data or a replica fails; nothing is written then.
    """
    result = run(
        Path(input),
        data,
        options,
        CalibrationOutput(output=output, statistics_out=statistics_out, force=force),
        Verifying.given(verify, verify_options),
        replicas=replicas,
        fold=fold,
        show_batch=progress,
    )
    return None if result is None else result.report


def run(
    path: Path,
    data: Data,
    options: CalibrateOptions,
    writing: CalibrationOutput,
    verifying: Verifying = Verifying(),
    *,
    replicas: ReplicaOptions = ReplicaOptions(),
    fold: bool = False,
    page: Path | None = None,
    show_batch: ShowBatch | None = None,
) -> Result[CalibrateReport] | None:
    """Calibrate a file into another; replica 0 writes, the others return None.

    Raises:
        SyncBNError: as `calibrate_file`; nothing is written then.
    """
    output, statistics_out = writing.output, writing.statistics_out
    if output is None and statistics_out is None:
        raise UsageError(
            "calibrate has nothing to write: give -o FILE, --statistics-out FILE or both"
        )
    start = time.perf_counter()
    with contextlib.ExitStack() as outputs:
        with ReplicaRun(replicas) as replica_run:
            writes = replica_run.writes
            pages = PageWriter(page if writes else None)
            staged: dict[Path, staging.StagedOutput] = {}

            def prepare() -> tuple[ReplicaJob, tuple[str, ...]]:
                if writes:
                    for target in (output, statistics_out):
                        if target is not None:
                            place = staging.stage_output(target, inputs=[path], force=writing.force)
                            staged[target] = outputs.enter_context(place)
                source = reading.read(path)
                pages.take(source.model, path)
                job = replica_run.job(source.model, data)
                return job, check_rise(source, job.form, verifying) if writes else ()

            job, notes = replica_run.together(prepare)
            found = replica_run.calibrate(job, options, show_batch)
        if not writes:
            return None
        report = _finish(job.form, found, replica_run, options, start)
        verdict = None
        if output is not None:
            keeps_form = job.came_as_form and not fold
            verdict = _write(job.form, staged[output], keeps_form, verifying)
        if statistics_out is not None:
            described = _described(job.form, options, found, replica_run)
            moving_statistics.save(described, staged[statistics_out].path)
        for place in staged.values():
            place.commit()
        report = dataclasses.replace(
            report,
            verified=verdict is not None,
            seconds=time.perf_counter() - start,
            notes=[*report.notes, *job.dataset.notes, *notes],
        )
        pages.write(report, output)
        files = {"input": path, "output": output, "statistics": statistics_out}
        return Result(report=report, files=files)


def _described(
    form: ir.Model, options: CalibrateOptions, result: Calibration, run: ReplicaRun
) -> Statistics:
    provenance = {
        **dataclasses.asdict(options),
        "samples": result.samples,
        "batches_counted": result.batches,
        "replicas": run.size,
    }
    return dataclasses.replace(moving_statistics.of_form(form), provenance=provenance)


def _write(
    form: ir.Model,
    staged: staging.StagedOutput,
    keeps_form: bool,
    verifying: Verifying,
) -> verdicts.Verdict | None:
    path = staged.path
    if keeps_form:
        model_file.write_model(form, path, data=staged.data)
        return verdicts.verify_form(path, verifying) if verifying.verify else None
    folded = model_file.as_model(form)
    recipes.to_inference(folded)
    model_file.write_model(folded, path, data=staged.data)
    if not verifying.verify:
        return None
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        origin = Path(folder) / path.name
        model_file.write_model(form, origin)
        return verdicts.verify_folded(origin, path, verifying)


def _finish(
    form: ir.Model, result: Calibration, run: ReplicaRun, options: CalibrateOptions, start: float
) -> CalibrateReport:
    """Put the new statistics into the form and say what moved."""
    old = moving_statistics.of_form(form)
    moving_statistics.apply_to_form(dataclasses.replace(old, tensors=result.statistics), form)
    return CalibrateReport(
        method=options.method,
        engine=run.engine,
        replicas=run.size,
        batches=result.batches,
        samples=result.samples,
        layers=_changes(form, old.tensors, result.statistics),
        verified=False,
        seconds=time.perf_counter() - start,
        notes=[*model_file.notes_of(form), *random_nodes.note(form)],
    )


def _changes(form: ir.Model, old: dict[str, Array], new: dict[str, Array]) -> list[LayerChange]:
    changes: list[LayerChange] = []
    for layer in layers_of(form):
        means = [stats[layer.mean].astype(np.float64) for stats in (old, new)]
        variances = [stats[layer.var].astype(np.float64) + layer.epsilon for stats in (old, new)]
        shift = np.abs(means[1] - means[0]) / np.sqrt(np.abs(variances[1]))
        ratio = np.abs(variances[1] / variances[0])
        extreme = int(np.argmax(np.abs(np.log(ratio))))
        changes.append(
            LayerChange(
                name=layer.name,
                channels=layer.channels,
                mean_shift=float(shift.max()),
                variance_ratio=float(ratio[extreme]),
                module=layer.module,
            )
        )
    return sorted(changes, key=lambda change: -change.moved)
