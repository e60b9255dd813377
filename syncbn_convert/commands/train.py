"""`step` and `train`, as Python calls."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from syncbn_convert.errors import ModelFileError, UsageError
from syncbn_convert.files import model_file, staging
from syncbn_convert.files.model_file import ModelLike
from syncbn_convert.keras import reading
from syncbn_convert.options.optimizers import describe
from syncbn_convert.runtime.communicator import Communicator
from syncbn_convert.runtime.datasets import Source
from syncbn_convert.runtime.run import ReplicaOptions, ReplicaRun
from syncbn_convert.training import checkpoint as checkpoints
from syncbn_convert.training.description import (
    DESCRIPTION_FILE,
    GRADIENT_FILE,
    UPDATE_FILE,
    all_reduces,
    describe_step,
)
from syncbn_convert.training.evaluation import Evaluator, with_weights
from syncbn_convert.training.loop import (
    Checkpointing,
    Progress,
    Trained,
    TrainingLoop,
    TrainOptions,
)
from syncbn_convert.training.replica import LoadedStep
from syncbn_convert.training.reports import StepReport, TrainReport
from syncbn_convert.training.samples import Samples, labels_of
from syncbn_convert.training.step_models import StepModels, StepOptions, build, random_node
from syncbn_convert.verification import VerifyOptions, rewrites


def step(model: ModelLike, options: StepOptions) -> StepModels:
    """Return the gradient graph, the update graph and what belongs together in them.

    Args:
        model: A training form, or any model that `convert` takes; not changed.
        options: Loss, optimizer, and what is trained.

    Raises:
        ConversionError: if the model cannot be converted or differentiated.
    """
    return build(reading.as_model(model), options)


def step_file(
    input: Path,  # noqa: A002
    folder: Path,
    options: StepOptions,
    *,
    force: bool = False,
) -> StepReport:
    """Write `gradient.onnx`, `update.onnx` and `step.json` into a folder, which is made.

    Args:
        input: The model file.
        folder: Where to.
        options: Loss, optimizer, and what is trained.
        force: Whether the files may exist.

    Raises:
        SyncBNError: if the model cannot be differentiated or the files cannot be written.
    """
    start = time.perf_counter()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelFileError(
            f"{folder}: cannot be made: {error.strerror or error}; choose another folder"
        ) from error
    paths = [folder / name for name in (GRADIENT_FILE, UPDATE_FILE, DESCRIPTION_FILE)]
    staging.check_outputs(paths, inputs=[input], force=force)
    models = build(reading.load_model(input), options)
    with staging.stage_output(paths[0], inputs=[input], force=force) as staged:
        model_file.write_model(models.gradient, staged.path, data=staged.data)
        model_file.check_file(staged.path)
        staged.commit()
    with staging.stage_output(paths[1], force=force) as staged:
        onnx.save(models.update.proto, staged.path)
        model_file.check_file(staged.path)
        staged.commit()
    with staging.stage_output(paths[2], force=force) as staged:
        text = json.dumps(describe_step(models), indent=2)
        staged.path.write_text(f"{text}\n", encoding="utf-8")
        staged.commit()
    return StepReport(
        loss=options.loss,
        optimizer=describe(options.optimizer),
        parameters=len(models.parameters),
        values=_values(models),
        buckets=[bucket.size for bucket in models.buckets],
        records=models.records,
        all_reduces=all_reduces(models.gradient),
        notes=models.notes,
        seconds=time.perf_counter() - start,
    )


def train(
    model: ModelLike,
    data: Source,
    step_options: StepOptions,
    options: TrainOptions,
    *,
    eval_data: Source | None = None,
    replicas: ReplicaOptions = ReplicaOptions(),
    checkpointing: Checkpointing | None = None,
) -> ir.Model | Any:
    """Return the training form of `model` with trained weights; see `train_with_report`."""
    return train_with_report(
        model,
        data,
        step_options,
        options,
        eval_data=eval_data,
        replicas=replicas,
        checkpointing=checkpointing,
    )[0]


def train_with_report(
    model: ModelLike,
    data: Source,
    step_options: StepOptions,
    options: TrainOptions,
    *,
    eval_data: Source | None = None,
    replicas: ReplicaOptions = ReplicaOptions(),
    checkpointing: Checkpointing | None = None,
    progress: Progress | None = None,
) -> tuple[ir.Model | Any, TrainReport]:
    """Train a model on replicas.

    Args:
        model: A training form, or any model that `convert` takes; not changed.
        data: See `datasets.open_dataset`; the labels are one of its arrays.
        step_options: Loss, optimizer, and what is trained.
        options: Learning rate, length, and order of the samples.
        eval_data: What the inference form is evaluated on after each epoch.
        replicas: Where and on how many replicas.
        checkpointing: Where to keep the state; None keeps none.
        progress: Called after each update on replica 0.

    Returns:
        The training form with new parameters and statistics under their names, in the type that
        came in, on every process; and what happened.

    Raises:
        SyncBNError: if the model, the data or a replica fails.
    """
    start = time.perf_counter()
    with ReplicaRun(replicas) as run:
        job = run.together(
            lambda: _Job(run, reading.as_model(model), data, eval_data, step_options, options)
        )
        trained = job.train(checkpointing, progress)
    form = with_weights(job.models.form, trained.arrays)
    return model_file.like_argument(form, model), job.report(trained, start)


def train_file(
    input: Path,  # noqa: A002
    data: Source,
    output: Path,
    step_options: StepOptions,
    options: TrainOptions,
    *,
    eval_data: Source | None = None,
    replicas: ReplicaOptions = ReplicaOptions(),
    checkpointing: Checkpointing | None = None,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
    force: bool = False,
    progress: Progress | None = None,
) -> TrainReport | None:
    """Train a file into another; replica 0 writes, the others return None.

    Args:
        input: The model file.
        data: See `datasets.open_dataset`; the labels are one of its arrays.
        output: The training form to write.
        step_options: Loss, optimizer, and what is trained.
        options: Learning rate, length, and order of the samples.
        eval_data: What the inference form is evaluated on after each epoch.
        replicas: Where and on how many replicas.
        checkpointing: Where to keep the state; None keeps none.
        verify: Whether to run the nodes of the result beside ONNX Runtime's kernel.
        verify_options: Feeds and tolerances of that.
        force: Whether the output may exist, and a checkpoint that is not resumed.
        progress: Called after each update on replica 0.

    Raises:
        SyncBNError: if the model, the data or a replica fails; no model is written then.
    """
    start = time.perf_counter()
    with ReplicaRun(replicas) as run:

        def prepare() -> _Job:
            if run.writes:
                staging.check_outputs([output], inputs=[input], force=force)
                if checkpointing is not None and not (checkpointing.resume or force):
                    checkpoints.check_free(checkpointing.folder)
            model = reading.load_model(input)
            return _Job(run, model, data, eval_data, step_options, options)

        job = run.together(prepare)
        trained = job.train(checkpointing, progress)
    if not run.writes:
        return None
    with staging.stage_output(output, inputs=[input], force=force) as staged:
        form = with_weights(job.models.form, trained.arrays)
        model_file.write_model(form, staged.path, data=staged.data)
        model_file.check_file(staged.path)
        if verify:
            rewrites.verify_form(staged.path, verify_options)
        staged.commit()
    return dataclasses.replace(job.report(trained, start), verified=verify, seconds=trained.seconds)


class _Job:
    """What a process has to have before the first step."""

    def __init__(
        self,
        run: ReplicaRun,
        model: ir.Model,
        data: Source,
        eval_data: Source | None,
        step_options: StepOptions,
        options: TrainOptions,
    ) -> None:
        self._run = run
        self._options = options
        self.models = build(model, step_options)
        threads = run.options.threads(run.local_size)
        shared = run.size if run.engine == "threads" else 1
        self._loaded = LoadedStep(
            self.models, threads, min(threads * shared, os.cpu_count() or 1), alone=run.size == 1
        )
        form = self._loaded.form
        metric = self.models.metric
        classes = metric.classes if metric is not None else None
        labels = labels_of(form.session, step_options.labels, classes)
        inputs = [name for name in form.input_names if name not in self._loaded.parameters]
        self._samples = Samples(data, inputs, labels, shuffle=options.shuffle)
        self._evaluator = None
        if eval_data is not None:
            samples = Samples(eval_data, inputs, labels, shuffle=False)
            self._evaluator = Evaluator(self.models, samples, options.batch_size, threads)
        needed = options.schedule.needs_length
        if needed and self._samples.size is None:
            raise UsageError(
                f"data '{self._samples.name}' is a function, whose end is not known, but the "
                f"schedule {options.schedule.kind} falls to its end; take another, or give files"
            )

    def train(self, checkpointing: Checkpointing | None, progress: Progress | None) -> Trained:
        """Train on every replica of this process.

        Raises:
            UsageError: if the model draws random numbers, which no checkpoint holds.
        """
        drawing = random_node(self.models.gradient) if checkpointing is not None else None
        if drawing is not None:
            raise UsageError(
                f"node '{drawing}' draws random numbers, so that a resumed run would be another; "
                "train without --checkpoint, or export the model in inference mode",
                reporter=0,
            )

        def replica(communicator: Communicator) -> Trained:
            loop = TrainingLoop(
                self._loaded,
                communicator,
                self._options,
                self._samples,
                self._evaluator,
                checkpointing,
                progress if communicator.rank == 0 else None,
            )
            return loop.run()

        return self._run.each(replica)

    def report(self, trained: Trained, start: float) -> TrainReport:
        """Say what happened."""
        options = self.models.options
        return TrainReport(
            loss=options.loss,
            optimizer=describe(options.optimizer),
            engine=self._run.engine,
            replicas=self._run.size,
            samples=self._samples.size,
            parameters=len(self.models.parameters),
            values=_values(self.models),
            epochs=trained.epochs,
            losses=trained.losses,
            resumed_at=trained.resumed_at,
            records=[record for record in self.models.records if record.action == "skipped"],
            notes=self.models.notes,
            verified=False,
            seconds=time.perf_counter() - start,
        )


def _values(models: StepModels) -> int:
    return sum(bucket.size for bucket in models.buckets)


__all__ = [
    "Checkpointing",
    "ReplicaOptions",
    "StepOptions",
    "TrainOptions",
    "step",
    "step_file",
    "train",
    "train_file",
    "train_with_report",
]
