"""Epochs of training on one replica."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from syncbn_convert.errors import ReplicaError
from syncbn_convert.files import scratch
from syncbn_convert.options.training import Checkpointing, TrainOptions
from syncbn_convert.runtime.communicator import Communicator
from syncbn_convert.training import checkpoint as checkpoints
from syncbn_convert.training.checkpoint import Checkpoint
from syncbn_convert.training.engine import Evaluating, Step
from syncbn_convert.training.replica import RatedBatch, StepOutcome
from syncbn_convert.training.results import EpochRecord
from syncbn_convert.training.samples import Micro, Samples, check_any

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Update:
    """How far a run has come.

    Attributes:
        epoch: Number of the epoch, from 1.
        epochs: Number of epochs.
        step: Updates done.
        steps: Updates in all; None where the number of samples is not known.
        loss: Of this update.
        accuracy: Of this replica in this epoch so far; None where the loss does not tell.
        rate: Samples per second, in this run.
        seconds_left: Estimate; None where it cannot be told.
        memory: Most memory that a device has used, in bytes; None if it does not know.
    """

    epoch: int
    epochs: int
    step: int
    steps: int | None
    loss: float
    accuracy: float | None
    rate: float
    seconds_left: float | None
    memory: int | None = None


ShowUpdate = Callable[[Update], None]


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run returns on every replica.

    Attributes:
        arrays: Parameters and statistics by name.
        epochs: What happened in each.
        losses: Loss of each step.
        resumed_at: Updates done before this run; 0 if it began anew.
        seconds: Wall time, that of earlier runs included.
    """

    arrays: dict[str, Array]
    epochs: list[EpochRecord]
    losses: list[float]
    resumed_at: int
    seconds: float


class TrainingLoop:
    """Runs the epochs of one replica.

    Args:
        loaded: The graphs.
        communicator: This replica's end of the group.
        options: How long and on what.
        samples: The data.
        evaluator: What evaluates after each epoch; None evaluates nothing.
        checkpointing: Where to keep the state; None keeps none.
        progress: Called after each update.
    """

    def __init__(
        self,
        loaded: Step,
        communicator: Communicator,
        options: TrainOptions,
        samples: Samples,
        evaluator: Evaluating | None = None,
        checkpointing: Checkpointing | None = None,
        progress: ShowUpdate | None = None,
    ) -> None:
        self._communicator = communicator
        self._options = options
        self._samples = samples
        self._evaluator = evaluator
        self._checkpointing = checkpointing
        self._progress = progress
        self._shards = options.epoch.shards and communicator.size > 1
        sizes = communicator.all_gather(samples.size) if self._shards else [samples.size]
        known = [size for size in sizes if size is not None]
        self._sizes = known if len(known) == len(sizes) else None
        self._identity = {
            **loaded.models.options.describe(),
            **options.identity(),
            "samples": None if self._sizes is None else sum(self._sizes),
            "replicas": communicator.size,
            "model": loaded.digest,
        }
        agreement: dict[str, Any] = {"options": dataclasses.asdict(options)}
        if communicator.size > 1 and not self._shards:
            agreement["data"] = samples.size
            if not communicator.shares_memory:
                agreement["data (digest; --shards takes parts)"] = samples.digest()
                if evaluator is not None:
                    agreement["evaluation data (digest)"] = evaluator.samples.digest()
        usual = -(-options.batch_size // options.accumulate)
        self._replica = loaded.replica(communicator, agreement, usual)
        self._has_metric = loaded.models.metric is not None
        self._epochs: list[EpochRecord] = []
        self._losses: list[float] = []
        self._before = 0.0
        self._start = time.perf_counter()

    def run(self) -> Trained:
        """Train to the end; all replicas call it together.

        Raises:
            ReplicaError: if a replica fails, or the data ends on some before others.
        """
        epoch, batch, sums = self._resume()
        self._say_how_to_resume(self._replica.updates)
        resumed_at = self._replica.updates
        seen = 0
        for number in range(epoch, self._options.epochs):
            state = _EpochSums(*(sums if number == epoch else (0.0, 0.0, 0.0, 0.0)))
            skipped = batch if number == epoch else 0
            seen = self._epoch(number, skipped, state, seen)
            self._finish_epoch(number, state)
        return Trained(self._arrays(), self._epochs, self._losses, resumed_at, self._seconds())

    def _epoch(self, number: int, skipped: int, state: _EpochSums, seen: int) -> int:
        batches = itertools.islice(self._together(number), skipped, None)
        every = self._checkpointing.every if self._checkpointing else None
        done, ended = skipped, False
        while not ended:
            length = None if every is None else every - self._replica.updates % every
            before = done
            for outcome in self._replica.steps(self._rated(batches, number, length)):
                done += 1
                self._losses.append(outcome.loss)
                state.add(outcome)
                seen += outcome.samples
                self._report(number, state, outcome, seen, len(self._losses))
            ended = length is None or done - before < length
            if every is not None and not ended:
                self._keep(number, done, state)
        check_any(int(state.samples), self._samples.name)
        return seen

    def _rated(
        self, batches: Iterator[list[Micro]], epoch: int, length: int | None
    ) -> Iterator[RatedBatch]:
        """Yield some batches, each with its learning rate."""
        steps, first = self._steps(), self._replica.updates
        for index, micros in enumerate(itertools.islice(batches, length)):
            yield micros, self._options.schedule.at(first + index, epoch, steps)

    def _finish_epoch(self, number: int, state: _EpochSums) -> None:
        right, labels = self._communicator.all_reduce_sum(np.array([state.right, state.labels]))
        evaluation = None
        if self._evaluator is not None:
            evaluation = self._evaluator.evaluate(self._communicator, self._arrays())
        self._epochs.append(
            EpochRecord(
                epoch=number + 1,
                steps=self._replica.updates,
                loss=state.loss / state.samples,
                accuracy=float(right / labels) if self._has_metric else None,
                eval_loss=evaluation.loss if evaluation else None,
                eval_accuracy=evaluation.accuracy if evaluation else None,
                learning_rate=self._options.schedule.at(
                    self._replica.updates - 1, number, self._steps()
                ),
                seconds=self._seconds(),
            )
        )
        if self._checkpointing is not None and self._checkpointing.every is None:
            self._keep(number + 1, 0, _EpochSums())

    def _steps(self) -> int | None:
        batches = self._batches()
        return None if batches is None else batches * self._options.epochs

    def _batches(self) -> int | None:
        if not self._shards or self._options.epoch.steps is not None:
            return self._samples.batches(self._options.batch_size)
        if self._sizes is None:
            return None
        size, batch = self._communicator.size, self._options.batch_size
        shares = [batch * (rank + 1) // size - batch * rank // size for rank in range(size)]
        lengths = [math.ceil(n / max(k, 1)) for n, k in zip(self._sizes, shares, strict=True)]
        return max(lengths)

    def _together(self, epoch: int) -> Iterator[list[Micro]]:
        """Yield this replica's pieces as long as every replica has one."""
        options, communicator = self._options, self._communicator
        deal = self._samples.part if self._shards else self._samples.epoch
        batches = deal(
            epoch,
            options.seed,
            options.batch_size,
            options.accumulate,
            (communicator.rank, communicator.size),
        )
        if self._shards:
            yield from self._of_parts(batches)
        elif self._samples.size is not None:
            yield from batches
        else:
            yield from self._of_stream(batches)

    def _of_parts(self, batches: Iterator[list[Micro]]) -> Iterator[list[Micro]]:
        """Yield the pieces of this replica's part until no replica has samples left."""
        for micros in batches:
            counts = np.array([float(micro.count) for micro in micros])
            counts = self._communicator.all_reduce_sum(counts)
            if not counts.any():
                return
            yield [
                dataclasses.replace(micro, count=int(count))
                for micro, count in zip(micros, counts, strict=True)
                if count
            ]

    def _of_stream(self, batches: Iterator[list[Micro]]) -> Iterator[list[Micro]]:
        """Yield pieces as long as every replica has one, of the same batch."""
        communicator = self._communicator
        done = 0
        while True:
            micros = next(batches, None)
            seen = np.zeros((2, communicator.size))
            if micros is not None:
                seen[:, communicator.rank] = 1.0, micros[0].check
            present, checks = communicator.all_reduce_sum(seen.ravel()).reshape(seen.shape)
            if not present.any():
                return
            if micros is None or not present.all():
                ranks = ", ".join(str(rank) for rank in np.flatnonzero(present == 0))
                raise ReplicaError(
                    f"replica {ranks} ran out of data after {done} batches, the others did not; "
                    "give all replicas the same data, or pass --shards if each has a part",
                    reporter=0,
                )
            if (checks != checks[0]).any():
                ranks = ", ".join(str(rank) for rank in np.flatnonzero(checks != checks[0]))
                raise ReplicaError(
                    f"replica {ranks} has other data than replica 0 in batch {done + 1}; give all "
                    "replicas the same data, or pass --shards if each has a part",
                    reporter=0,
                )
            yield micros
            done += 1

    def _arrays(self) -> dict[str, Array]:
        return {**self._replica.parameters, **self._replica.statistics}

    def _seconds(self) -> float:
        return self._before + time.perf_counter() - self._start

    def _report(
        self, epoch: int, state: _EpochSums, outcome: StepOutcome, seen: int, done: int
    ) -> None:
        if self._progress is None:
            return
        steps = self._steps()
        rate = seen / max(time.perf_counter() - self._start, 1e-9)
        left = None
        if steps is not None:
            left = (steps - done) * self._options.batch_size / rate
        self._progress(
            Update(
                epoch=epoch + 1,
                epochs=self._options.epochs,
                step=done,
                steps=steps,
                loss=outcome.loss,
                accuracy=state.right / state.labels if state.labels else None,
                rate=rate,
                seconds_left=left,
                memory=outcome.memory,
            )
        )

    def _keep(self, epoch: int, batch: int, state: _EpochSums) -> None:
        """Write a checkpoint; every replica waits until it is there."""
        if self._checkpointing is None:
            return
        local = np.array([state.right, state.labels])
        right, labels = self._communicator.all_reduce_sum(local)
        if self._communicator.rank == 0:
            checkpoints.save(
                Checkpoint(
                    identity=self._identity,
                    step=self._replica.updates,
                    epoch=epoch,
                    batch=batch,
                    sums=[state.loss, state.samples, float(right), float(labels)],
                    epochs=[dataclasses.asdict(record) for record in self._epochs],
                    losses=self._losses,
                    seconds=self._seconds(),
                    parameters=self._replica.parameters,
                    slots=self._replica.slots,
                    statistics=self._replica.statistics,
                ),
                self._checkpointing.folder,
            )
            self._say_how_to_resume(self._replica.updates)
        self._communicator.barrier()

    def _say_how_to_resume(self, kept: int) -> None:
        """Say what a user who interrupts the run is told; `kept` updates are in the checkpoint."""
        if self._communicator.rank:
            return
        if self._checkpointing is None:
            words = "; nothing is kept without --checkpoint DIR, which a run can be resumed from"
        elif kept:
            folder = self._checkpointing.folder
            words = f"; {folder} holds step {kept}, give the same command --resume to go on from it"
        else:
            words = " before the first checkpoint; start the command again"
        scratch.say_if_interrupted(scratch.USUAL + words)

    def _resume(self) -> tuple[int, int, tuple[float, ...]]:
        """Take up a checkpoint; return epoch, batches of it done, and its sums so far."""
        found = None
        if self._checkpointing is not None and self._checkpointing.resume:
            folder = self._checkpointing.folder
            if self._communicator.rank == 0:
                found = checkpoints.load(folder)
                if found is not None:
                    checkpoints.check_same(self._identity, found.identity, folder)
            found = self._communicator.broadcast(found)
        if found is None:
            return 0, 0, (0.0, 0.0, 0.0, 0.0)
        self._replica.load(found.parameters, found.slots, found.statistics, found.step)
        self._epochs = [EpochRecord(**record) for record in found.epochs]
        self._losses = list(found.losses)
        self._before = found.seconds
        loss, samples, right, labels = found.sums
        if self._communicator.rank:
            right = labels = 0.0  # replica 0 holds those of all
        return found.epoch, found.batch, (loss, samples, right, labels)


@dataclasses.dataclass
class _EpochSums:
    """What an epoch has summed up; right and labels are those of this replica."""

    loss: float = 0.0
    samples: float = 0.0
    right: float = 0.0
    labels: float = 0.0

    def add(self, outcome: StepOutcome) -> None:
        self.loss += outcome.loss * outcome.samples
        self.samples += outcome.samples
        self.right += outcome.right
        self.labels += outcome.labels
