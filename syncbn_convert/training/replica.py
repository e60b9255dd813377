"""One replica of a training run: gradient, sum over replicas, update."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxruntime import OrtValue

from syncbn_convert.errors import ReplicaError
from syncbn_convert.form import provenance, training_form
from syncbn_convert.options.replicas import ENGINES
from syncbn_convert.passes import SeedRandomness
from syncbn_convert.rewriting import pipeline
from syncbn_convert.runtime.communicator import Buffer, Communicator
from syncbn_convert.runtime.onnx_session import open_session
from syncbn_convert.runtime.session import Extension, LoadedForm, ReplicaSession
from syncbn_convert.training.evaluation import Evaluator
from syncbn_convert.training.samples import Micro, Samples
from syncbn_convert.training.step_models import StepModels

if TYPE_CHECKING:
    from syncbn_convert.runtime.replica_run import ReplicaRun

Array = npt.NDArray[Any]


class LoadedStep:
    """The graphs of a step in ONNX Runtime, shared by the replicas of one process.

    Args:
        models: The graphs.
        threads: Intra-op threads of one replica.
        update_threads: Intra-op threads of an update, which the replicas of a process share.
        alone: Whether there is only one replica.
        seed: Of the random numbers that the graph draws.
    """

    draws_again = False
    """Whether a resumed run draws the random numbers that the whole run would have drawn."""

    @classmethod
    def for_run(cls, models: StepModels, run: ReplicaRun, *, seed: int) -> LoadedStep:
        """Load the graphs for the replicas of a process."""
        pipeline.run(models.gradient, [SeedRandomness()])
        threads = run.options.threads(run.local_size)
        shared = run.size if ENGINES[run.engine].threads else 1
        most = min(threads * shared, os.cpu_count() or 1)
        return cls(models, threads, most, alone=run.size == 1, seed=seed)

    def __init__(
        self,
        models: StepModels,
        threads: int,
        update_threads: int,
        *,
        alone: bool,
        seed: int = 0,
    ) -> None:
        self.models = models
        self.threads = threads
        self.seed = seed
        self.notes: list[str] = []
        self.random_key = provenance.random_key_of(models.gradient)
        self.parameters = {name: _array(models.gradient, name) for name in models.parameters}
        fed = {*self.parameters, *training_form.statistics_of(models.gradient)}
        self.form = LoadedForm(
            models.gradient, threads, extend=_without(fed), alone=alone, stateless=True
        )
        self.update = open_session(models.update.proto.SerializeToString(), threads=update_threads)
        self.digest = self.form.digest
        driven = {*self.parameters, self.random_key}
        self.inputs = [spec for spec in self.form.inputs if spec.name not in driven]

    def replica(
        self, communicator: Communicator, agreement: Mapping[str, Any], usual: int
    ) -> TrainingReplica:
        """Begin as one replica; all replicas call it together."""
        del usual
        return TrainingReplica(self, communicator, agreement, self.seed)

    def evaluator(self, samples: Samples, batch_size: int) -> Evaluator:
        """Return what evaluates the inference form."""
        return Evaluator(self.models, samples, batch_size, self.threads)


def _array(model: ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def _without(names: Collection[str]) -> Extension:
    """Let ONNX Runtime keep no copy of initializers that are fed at every step."""

    def remove(form: ir.Model, totals: Sequence[ir.Value]) -> None:
        del totals
        for name in names:
            del form.graph.initializers[name]

    return remove


@dataclasses.dataclass(frozen=True)
class StepOutcome:
    """What one update saw.

    Attributes:
        loss: Over the whole global batch, the same on every replica.
        samples: Number of samples on all replicas.
        right: Predictions of this replica that are right.
        labels: Predictions of this replica.
        memory: Most memory that its device has used, in bytes; None if it does not know.
    """

    loss: float
    samples: int
    right: int
    labels: int
    memory: int | None = None


RatedBatch = tuple[list[Micro], float]
"""A replica's pieces of one update, and its learning rate."""


class TrainingReplica:
    """Keeps parameters and slots between steps, as values that ONNX Runtime reads in place.

    Args:
        loaded: The graphs.
        communicator: This replica's end of the group.
        agreement: Facts that must be the same on all replicas, by name.
        seed: Of the random numbers that the graph draws.

    Raises:
        ReplicaError: if the replicas do not agree.
    """

    def __init__(
        self,
        loaded: LoadedStep,
        communicator: Communicator,
        agreement: Mapping[str, Any],
        seed: int = 0,
    ) -> None:
        self._random_key = loaded.random_key
        self._seed = seed
        self._models = loaded.models
        self._update_session = loaded.update
        self._communicator = communicator
        self._session = ReplicaSession(loaded.form, communicator, agreement=agreement)
        self._apart = any(size not in (0, communicator.size) for size in loaded.form.group_sizes)
        self._parameters: dict[str, OrtValue] = {}
        self._slots: dict[str, OrtValue] = {}
        self.updates = 0
        self.load(loaded.parameters, loaded.models.update.initial_slots())

    @property
    def parameters(self) -> dict[str, Array]:
        """The trained parameters by name; views that later steps leave alone."""
        return {name: view_of(value) for name, value in self._parameters.items()}

    @property
    def slots(self) -> dict[str, Array]:
        """The optimizer's slots by name."""
        return {name: view_of(value) for name, value in self._slots.items()}

    @property
    def statistics(self) -> dict[str, Array]:
        """Copies of the moving statistics by name."""
        return self._session.state

    def load(
        self,
        parameters: Mapping[str, Array],
        slots: Mapping[str, Array],
        statistics: Mapping[str, Array] | None = None,
        updates: int = 0,
    ) -> None:
        """Begin from copies of this state."""
        self._parameters, self._slots = copies_of(parameters), copies_of(slots)
        self._session.load_state(statistics or {})
        self.updates = updates

    def steps(self, batches: Iterator[RatedBatch]) -> Iterator[StepOutcome]:
        """Update once for each batch; see `step`."""
        for micros, learning_rate in batches:
            yield self.step(micros, learning_rate)

    def step(self, micros: Sequence[Micro], learning_rate: float) -> StepOutcome:
        """Update once; all replicas call it together.

        Args:
            micros: This replica's pieces; each micro-batch has statistics of its own, and the
                gradient is that of the mean over all of their samples.
            learning_rate: Of this update.

        Raises:
            ReplicaError: if a replica fails, or loss or statistics are not finite.
        """
        samples = sum(micro.count for micro in micros)
        loss = 0.0
        right = labels = 0
        gradients: list[Buffer] = []
        for number, micro in enumerate(micros):
            outputs = self._run(micro.feeds, number)
            loss += float(outputs[self._models.loss].numpy()) * (micro.count / samples)
            buckets: list[Buffer] = [
                view_of(outputs[bucket.name]) for bucket in self._models.buckets
            ]
            gradients = _weighted(gradients, buckets, micro.count / samples, len(micros) > 1)
            hits, count = self._count(outputs, micro.feeds)
            right, labels = right + hits, labels + count
        self._check_finite(loss)
        totals = [self._communicator.all_reduce_buffer(bucket) for bucket in gradients]
        self._update(totals, learning_rate)
        return StepOutcome(loss, samples, right, labels)

    def _run(self, feeds: Mapping[str, Array], micro: int) -> dict[str, OrtValue]:
        given = {**feeds, **self._key(micro)}
        outputs, _ = self._session.run({**values_of(given), **self._parameters})
        if self._apart:
            self._average_statistics()
        return outputs

    def _key(self, micro: int) -> dict[str, Array]:
        """Return what random numbers of this piece of this update follow from, on this replica."""
        if self._random_key is None:
            return {}
        place = [self._seed, self.updates, micro, self._communicator.rank]
        state = np.random.SeedSequence(place).generate_state(1, np.uint64)
        return {self._random_key: state.view(np.int64).reshape(())}

    def _average_statistics(self) -> None:
        """Give all groups of replicas the mean of their moving statistics.

        Each group normalizes by its own batch, but there is one model; Keras' MirroredStrategy
        averages them so, too.
        """
        state = self._session.state
        flat = np.concatenate([array.astype(np.float64).ravel() for array in state.values()])
        mean = self._communicator.all_reduce_sum(flat) / self._communicator.size
        bounds = np.cumsum([array.size for array in state.values()])[:-1]
        parts = np.split(mean, bounds)
        self._session.load_state(
            {
                name: part.reshape(array.shape).astype(array.dtype)
                for (name, array), part in zip(state.items(), parts, strict=True)
            }
        )

    def _count(
        self, outputs: Mapping[str, OrtValue], feeds: Mapping[str, Array]
    ) -> tuple[int, int]:
        metric = self._models.metric
        if metric is None:
            return 0, 0
        right = metric.right(outputs[metric.output].numpy(), feeds[metric.labels])
        return int(right.sum()), right.size

    def _check_finite(self, loss: float) -> None:
        """All replicas come here together, as they share the loss."""
        if not np.isfinite(loss):
            raise ReplicaError(
                f"the loss is {loss} in step {self.updates + 1}; lower the learning rate, or look "
                "for NaN, infinity or huge values in the data",
                reporter=0,
            )

    def _update(self, gradients: Sequence[Buffer], learning_rate: float) -> None:
        """Replicas that share memory share parameters, and replica 0 updates them for all."""
        self.updates += 1
        state = None
        if self._communicator.rank == 0 or not self._communicator.shares_memory:
            state = self._updated(gradients, learning_rate)
        if self._communicator.shares_memory:
            state = self._communicator.broadcast(state)
        assert state is not None
        self._parameters, self._slots = state

    def _updated(
        self, gradients: Sequence[Buffer], learning_rate: float
    ) -> tuple[dict[str, OrtValue], dict[str, OrtValue]]:
        update = self._models.update
        scalars: dict[str, Array] = {
            update.learning_rate: np.array(learning_rate, dtype=np.float32),
            update.step: np.array(self.updates, dtype=np.int64),
        }
        feeds = {
            **self._parameters,
            **self._slots,
            **values_of(dict(zip(update.buckets, gradients, strict=True))),
            **values_of(scalars),
        }
        bound = {**update.parameters, **update.slots}
        results = self._update_session.run_with_ort_values(list(bound.values()), feeds)
        by_name = dict(zip(bound, results, strict=True))
        return (
            {name: by_name[name] for name in update.parameters},
            {name: by_name[name] for name in update.slots},
        )


def values_of(arrays: Mapping[str, Array]) -> dict[str, OrtValue]:
    """Return values of ONNX Runtime that read the arrays in place."""
    return {
        name: OrtValue.ortvalue_from_numpy(array if array.flags.c_contiguous else array.copy())
        for name, array in arrays.items()
    }


def copies_of(arrays: Mapping[str, Array]) -> dict[str, OrtValue]:
    """Return values of ONNX Runtime with memory of their own, which views of them keep alive."""
    copies: dict[str, OrtValue] = {}
    for name, array in arrays.items():
        copies[name] = OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype)
        copies[name].update_inplace(np.ascontiguousarray(array).reshape(array.shape))
    return copies


def view_of(value: OrtValue) -> Array:
    """Return an array that reads a value in place, and keeps memory alive that is the value's own.

    The memory of a value of `values_of` is another array's, and lives as long as that.
    """
    array: Array = np.from_dlpack(value)
    return array


def _weighted(
    so_far: list[Buffer], buckets: Sequence[Buffer], share: float, several: bool
) -> list[Buffer]:
    """Add gradients, each by its share of the samples; a single one is taken as it is."""
    if not several:
        return list(buckets)
    scaled: list[Buffer] = [bucket * bucket.dtype.type(share) for bucket in buckets]
    for bucket, total in zip(scaled, so_far, strict=False):
        bucket += total
    return scaled
