"""`train`: a model trained on data, on one or many replicas."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from syncbn_convert.commands.run import Result, check_rise
from syncbn_convert.errors import ConversionError, UsageError
from syncbn_convert.files import model_file, staging
from syncbn_convert.files.model_file import Model, ModelLike
from syncbn_convert.form import provenance
from syncbn_convert.graph import graphs, random_nodes
from syncbn_convert.keras import reading
from syncbn_convert.keras.reading import Source
from syncbn_convert.options.optimizers import describe
from syncbn_convert.options.replicas import ENGINES, ReplicaOptions
from syncbn_convert.options.training import Checkpointing, StepOptions, TrainOptions
from syncbn_convert.options.verifying import Verifying, VerifyOptions
from syncbn_convert.options.writing import RequiredOutput
from syncbn_convert.page.writer import PageWriter
from syncbn_convert.runtime.communicator import Communicator
from syncbn_convert.runtime.datasets import Data, open_dataset
from syncbn_convert.runtime.engines import imported
from syncbn_convert.runtime.fitting import InputSpec
from syncbn_convert.runtime.open_batch import fixed_batch, open_batch
from syncbn_convert.runtime.replica_run import ReplicaRun
from syncbn_convert.training import checkpoint as checkpoints
from syncbn_convert.training.engine import Evaluating, Step
from syncbn_convert.training.evaluation import with_weights
from syncbn_convert.training.labels import labels_of
from syncbn_convert.training.loop import ShowUpdate, Trained, TrainingLoop
from syncbn_convert.training.results import TrainReport
from syncbn_convert.training.samples import Samples
from syncbn_convert.training.step_models import build
from syncbn_convert.verification import verdicts


def train(
    model: ModelLike,
    data: Data,
    step_options: StepOptions,
    options: TrainOptions,
    *,
    eval_data: Data | None = None,
    replicas: ReplicaOptions = ReplicaOptions(),
    checkpointing: Checkpointing | None = None,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
) -> Model:
    """Return the training form of `model` with trained weights; see `train_with_report`."""
    return train_with_report(
        model,
        data,
        step_options,
        options,
        eval_data=eval_data,
        replicas=replicas,
        checkpointing=checkpointing,
        verify=verify,
        verify_options=verify_options,
    )[0]


def train_with_report(
    model: ModelLike,
    data: Data,
    step_options: StepOptions,
    options: TrainOptions,
    *,
    eval_data: Data | None = None,
    replicas: ReplicaOptions = ReplicaOptions(),
    checkpointing: Checkpointing | None = None,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
    progress: ShowUpdate | None = None,
) -> tuple[Model, TrainReport]:
    """Train a model on replicas.

    Args:
        model: A training form, or any model that `convert` takes; not changed.
        data: See `datasets.open_dataset`; the labels are one of its arrays.
        step_options: Loss, optimizer, and what is trained.
        options: Learning rate, length, and order of the samples.
        eval_data: What the inference form is evaluated on after each epoch.
        replicas: Where and on how many replicas.
        checkpointing: Where to keep the state; None keeps none.
        verify: Whether a model whose opset had to rise is compared with what it was.
        verify_options: Feeds and tolerances of that.
        progress: Called after each update on replica 0.

    Returns:
        The training form with new parameters and statistics under their names, in the type that
        came in, on every process; and what happened.

    Raises:
        SyncBNError: if the model, the data or a replica fails.
    """
    start = time.perf_counter()
    with ReplicaRun(replicas) as run:
        verifying = Verifying.given(verify and run.writes, verify_options)

        def prepare() -> tuple[Source, _Job]:
            source = reading.read(model)
            job = _Job(run, source.model, data, eval_data, step_options, options)
            job.check_rise(source, verifying)
            return source, job

        source, job = run.together(prepare)
        trained = job.train(checkpointing, progress)
    form = with_weights(job.models.form, trained.arrays)
    return source.like(form), job.report(trained, seconds=time.perf_counter() - start)


def train_file(
    input: str | os.PathLike[str],  # noqa: A002
    data: Data,
    output: Path,
    step_options: StepOptions,
    options: TrainOptions,
    *,
    eval_data: Data | None = None,
    replicas: ReplicaOptions = ReplicaOptions(),
    checkpointing: Checkpointing | None = None,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
    force: bool = False,
    progress: ShowUpdate | None = None,
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
    result = run(
        Path(input),
        data,
        step_options,
        options,
        RequiredOutput(output=output, force=force),
        Verifying.given(verify, verify_options),
        eval_data=eval_data,
        replicas=replicas,
        checkpointing=checkpointing,
        show_update=progress,
    )
    return None if result is None else result.report


def run(
    path: Path,
    data: Data,
    step_options: StepOptions,
    options: TrainOptions,
    writing: RequiredOutput,
    verifying: Verifying = Verifying(),
    *,
    eval_data: Data | None = None,
    replicas: ReplicaOptions = ReplicaOptions(),
    checkpointing: Checkpointing | None = None,
    page: Path | None = None,
    show_update: ShowUpdate | None = None,
) -> Result[TrainReport] | None:
    """Train a file into another; replica 0 writes, the others return None.

    Raises:
        SyncBNError: as `train_file`; no model is written then.
    """
    with contextlib.ExitStack() as outputs:
        with ReplicaRun(replicas) as replica_run:
            writes = replica_run.writes
            pages = PageWriter(page if writes else None)

            def prepare() -> tuple[_Job, staging.StagedOutput | None]:
                staged = None
                if writes:
                    place = staging.stage_output(writing.output, inputs=[path], force=writing.force)
                    staged = outputs.enter_context(place)
                    if checkpointing is not None:
                        if not (checkpointing.resume or writing.force):
                            checkpoints.check_free(checkpointing.folder)
                        outputs.enter_context(checkpoints.had(checkpointing.folder))
                source = reading.read(path)
                pages.take(source.model, path)
                job = _Job(replica_run, source.model, data, eval_data, step_options, options)
                if writes:
                    job.check_rise(source, verifying)
                return job, staged

            job, staged = replica_run.together(prepare)
            trained = job.train(checkpointing, show_update)
        if staged is None:
            return None
        form = with_weights(job.models.form, trained.arrays)
        model_file.write_model(form, staged.path, data=staged.data)
        model_file.check_file(staged.path)
        if verifying.verify:
            verdicts.verify_form(staged.path, verifying)
        staged.commit()
        report = job.report(trained, seconds=trained.seconds, verified=verifying.verify)
        pages.write(report, writing.output)
        return Result(report=report, files={"input": path, "output": writing.output})


class _Job:
    """What a process has to have before the first step."""

    def __init__(
        self,
        run: ReplicaRun,
        model: ir.Model,
        data: Data,
        eval_data: Data | None,
        step_options: StepOptions,
        options: TrainOptions,
    ) -> None:
        self._run = run
        self._options = options
        self._notes: list[str] = []
        fixed = fixed_batch(model)
        if fixed is not None and open_batch(model):
            self._notes.append(f"the model was exported for batches of {fixed}, and now takes any")
            fixed = None
        self.models = build(model, step_options, _label_shape(data, step_options))
        alone = provenance.alone_because(self.models.gradient)
        if alone and run.size > 1:
            raise ConversionError(
                f"the loss '{step_options.loss}' cannot be put together from {run.size} replicas: "
                f"{alone}; train on one, or let the model return what the loss is the mean of"
            )
        self._check_shards(options)
        kind = imported(ENGINES[run.engine].step)
        self._loaded: Step = kind.for_run(self.models, run, seed=options.seed)
        metric = self.models.metric
        classes = metric.classes if metric is not None else None
        labels = labels_of(self.models.gradient, step_options, classes)
        named = labels.name if labels is not None else None
        inputs = [
            InputSpec(spec.name) if spec.name == named else spec for spec in self._loaded.inputs
        ]
        self._samples = Samples(
            data, inputs, labels, shuffle=options.shuffle, options=options.epoch
        )
        self._evaluator: Evaluating | None = None
        if eval_data is not None:
            compared = [spec for spec in inputs if spec.name != step_options.weights]
            samples = Samples(eval_data, compared, labels, shuffle=False)
            self._evaluator = self._loaded.evaluator(samples, options.batch_size)
        if fixed is not None:
            self._check_fixed(fixed, options)
        needed = options.schedule.needs_length
        if needed and self._samples.batches(options.batch_size) is None:
            raise UsageError(
                f"data '{self._samples.name}' is a function, whose end is not known, but the "
                f"schedule {options.schedule.kind} falls to its end; take another, give files, or "
                "pass --steps-per-epoch N"
            )

    def _check_fixed(self, fixed: int, options: TrainOptions) -> None:
        wanted = fixed * self._run.size * options.accumulate
        size = self._samples.size
        whole = options.epoch.drop_last or (size is not None and not size % wanted)
        if options.batch_size != wanted or not whole or self._evaluator is not None:
            raise UsageError(
                f"the model takes batches of {fixed} alone, as it was exported: pass --batch-size "
                f"{wanted} --drop-last without --eval-data, or export it with a batch of any size"
            )

    def _check_shards(self, options: TrainOptions) -> None:
        engine = ENGINES[self._run.engine]
        if not options.epoch.shards or self._run.size == 1:
            return
        if engine.devices:
            raise UsageError(
                "--shards: the devices and hosts of the xla engine read the same data; leave it "
                "out, or train on another --engine"
            )
        if engine.threads:
            raise UsageError(
                "--shards: the replicas of one process read the same data; start them with mpirun "
                "or torchrun, or leave it out"
            )

    def check_rise(self, source: Source, verifying: Verifying) -> None:
        """Compare what is trained with the file that it came from, if its opset had to rise."""
        opset = graphs.opset_version(self.models.gradient)
        self._notes += check_rise(source, self.models.form, verifying, opset=opset)

    def train(self, checkpointing: Checkpointing | None, progress: ShowUpdate | None) -> Trained:
        """Train on every replica of this process.

        Raises:
            UsageError: if the model draws random numbers, which no checkpoint holds.
        """
        checked = checkpointing is not None and not self._loaded.draws_again
        found = random_nodes.find(self.models.gradient) if checked else ()
        drawing = next((graphs.label(node) for node, _, _ in found), None)
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

    def _drawing(self) -> tuple[str, ...]:
        return () if self._loaded.draws_again else random_nodes.note(self.models.gradient)

    def report(self, trained: Trained, *, seconds: float, verified: bool = False) -> TrainReport:
        """Say what happened."""
        options = self.models.options
        return TrainReport(
            loss=options.loss,
            optimizer=describe(options.optimizer),
            engine=self._run.engine,
            replicas=self._run.size,
            samples=self._samples.size,
            parameters=len(self.models.parameters),
            values=self.models.values,
            epochs=trained.epochs,
            losses=trained.losses,
            resumed_at=trained.resumed_at,
            records=[record for record in self.models.records if record.action == "skipped"],
            notes=[
                *self.models.notes,
                *self._samples.notes,
                *self._drawing(),
                *self._notes,
                *self._loaded.notes,
            ],
            verified=verified,
            seconds=seconds,
        )


def _label_shape(data: Data, options: StepOptions) -> tuple[int | None, ...] | None:
    """Return the shape of the labels, where they are in arrays."""
    if options.labels is None:
        return None
    in_file = isinstance(data, str | os.PathLike) and Path(data).exists()
    if not in_file and not isinstance(data, Mapping):
        return None
    column = open_dataset(data, [options.labels]).column
    assert column is not None
    return (None, *column(options.labels).shape[1:])
