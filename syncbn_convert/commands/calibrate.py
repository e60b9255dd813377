"""`calibrate`, `statistics` and their files, as Python calls."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import time
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.files import model_file, staging
from syncbn_convert.files.model_file import ModelLike
from syncbn_convert.form import statistics as statistics_file
from syncbn_convert.form.layers import layers_of
from syncbn_convert.form.statistics import Statistics
from syncbn_convert.keras import reading
from syncbn_convert.passes import FoldMovingStatistics
from syncbn_convert.passes.recipes import to_form
from syncbn_convert.reports import CalibrateReport, LayerChange
from syncbn_convert.runtime.calibration import CalibrateOptions, Calibration, Progress
from syncbn_convert.runtime.datasets import Source
from syncbn_convert.runtime.run import ReplicaJob, ReplicaOptions, ReplicaRun
from syncbn_convert.verification import VerifyOptions, rewrites

Array = npt.NDArray[Any]
Result = TypeVar("Result")

_logger = logging.getLogger(__name__)


def calibrate(
    model: ModelLike,
    data: Source,
    options: CalibrateOptions = CalibrateOptions(),
    *,
    replicas: ReplicaOptions = ReplicaOptions(),
    fold: bool = False,
) -> ir.Model | Any:
    """Return `model` with statistics estimated on `data`; see `calibrate_with_report`."""
    return calibrate_with_report(model, data, options, replicas=replicas, fold=fold)[0]


def calibrate_with_report(
    model: ModelLike,
    data: Source,
    options: CalibrateOptions = CalibrateOptions(),
    *,
    replicas: ReplicaOptions = ReplicaOptions(),
    fold: bool = False,
    progress: Progress | None = None,
) -> tuple[ir.Model | Any, CalibrateReport]:
    """Re-estimate the moving statistics of a model on data.

    Args:
        model: A training form, or any model with BatchNormalization; not changed.
        data: See `datasets.open_dataset`.
        options: How statistics are estimated.
        replicas: Where and on how many replicas.
        fold: Whether a training form comes back in inference form.
        progress: Called after each batch on replica 0.

    Returns:
        A training form for a training form (without `fold`), else the inference form; in the type
        that came in; and what moved.

    Raises:
        SyncBNError: if the model, the data or a replica fails.
    """
    start = time.perf_counter()
    with ReplicaRun(replicas) as run:
        job = run.together(lambda: run.job(reading.as_model(model), data))
        result = run.calibrate(job, options, progress)
    report = _finish(job.form, result, run, options, start)
    if fold or not job.came_as_form:
        FoldMovingStatistics()(job.form)
    return model_file.like_argument(job.form, model), report


def calibrate_file(
    input: Path,  # noqa: A002
    data: Source,
    output: Path | None,
    options: CalibrateOptions = CalibrateOptions(),
    *,
    replicas: ReplicaOptions = ReplicaOptions(),
    fold: bool = False,
    statistics_out: Path | None = None,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
    force: bool = False,
    progress: Progress | None = None,
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
    start = time.perf_counter()
    with ReplicaRun(replicas) as run:
        outputs = [output, statistics_out] if run.writes else []

        def prepare() -> ReplicaJob:
            staging.check_outputs(outputs, inputs=[input], force=force)
            return run.job(reading.load_model(input), data)

        job = run.together(prepare)
        result = run.calibrate(job, options, progress)
    if not run.writes:
        return None
    report = _finish(job.form, result, run, options, start)
    verdict = None
    if output is not None:
        keeps_form = job.came_as_form and not fold
        with staging.stage_output(output, inputs=[input], force=force) as staged:
            verdict = _write(job.form, staged, keeps_form, verify, verify_options)
            staged.commit()
    if statistics_out is not None:
        _save_statistics(_described(job.form, options, result, run), statistics_out, force)
    return dataclasses.replace(
        report,
        verified=verdict is not None,
        seconds=time.perf_counter() - start,
    )


def extract_statistics(model: ModelLike) -> Statistics:
    """Return the moving statistics of a training form or of a model with BatchNormalization.

    Raises:
        ConversionError: if the model holds none that can be named.
    """
    return statistics_file.of_form(to_form(reading.as_model(model)))


def statistics_to_file(model: Path, output: Path, *, force: bool = False) -> Statistics:
    """Write the moving statistics of a model file to a `.safetensors` file; return them."""
    staging.check_outputs([output], inputs=[model], force=force)
    found = extract_statistics(model)
    _save_statistics(found, output, force)
    return found


def _described(
    form: ir.Model, options: CalibrateOptions, result: Calibration, run: ReplicaRun
) -> Statistics:
    provenance = {
        **dataclasses.asdict(options),
        "samples": result.samples,
        "batches_counted": result.batches,
        "replicas": run.size,
    }
    return dataclasses.replace(statistics_file.of_form(form), provenance=provenance)


def _save_statistics(statistics: Statistics, path: Path, force: bool) -> None:
    with staging.stage_output(path, force=force) as staged:
        statistics_file.save(statistics, staged.path)
        staged.commit()


def _write(
    form: ir.Model,
    staged: staging.StagedOutput,
    keeps_form: bool,
    verify: bool,
    options: VerifyOptions,
) -> rewrites.Verdict | None:
    path = staged.path
    if keeps_form:
        model_file.write_model(form, path, data=staged.data)
        return rewrites.verify_form(path, options) if verify else None
    folded = model_file.as_model(form)
    FoldMovingStatistics()(folded)
    model_file.write_model(folded, path, data=staged.data)
    if not verify:
        return None
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        origin = Path(folder) / path.name
        model_file.write_model(form, origin)
        return rewrites.verify_folded(origin, path, options)


def _finish(
    form: ir.Model, result: Calibration, run: ReplicaRun, options: CalibrateOptions, start: float
) -> CalibrateReport:
    """Put the new statistics into the form and say what moved."""
    old = statistics_file.of_form(form)
    statistics_file.apply_to_form(dataclasses.replace(old, tensors=result.statistics), form)
    return CalibrateReport(
        method=options.method,
        engine=run.engine,
        replicas=run.size,
        batches=result.batches,
        samples=result.samples,
        layers=_changes(form, old.tensors, result.statistics),
        verified=False,
        seconds=time.perf_counter() - start,
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
            )
        )
    return sorted(changes, key=lambda change: -change.moved)


__all__ = [
    "CalibrateOptions",
    "ReplicaOptions",
    "calibrate",
    "calibrate_file",
    "calibrate_with_report",
    "extract_statistics",
    "statistics_to_file",
]
