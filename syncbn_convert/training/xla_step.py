"""Training steps as XLA programs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from syncbn_convert.errors import ReplicaError
from syncbn_convert.form import training_form
from syncbn_convert.runtime.communicator import Communicator
from syncbn_convert.runtime.fitting import specs_of_graph
from syncbn_convert.runtime.observed_form import digest
from syncbn_convert.training.metrics import Metric
from syncbn_convert.training.replica import RatedBatch, StepOutcome
from syncbn_convert.training.samples import Samples
from syncbn_convert.training.step_models import StepModels
from syncbn_convert.training.xla_evaluation import XlaEvaluator
from syncbn_convert.xla import devices, trouble
from syncbn_convert.xla.compilation import compiled
from syncbn_convert.xla.dealing import Dealer, Dealt
from syncbn_convert.xla.hosts import HostCommunicator
from syncbn_convert.xla.prefetch import ahead
from syncbn_convert.xla.train_step import Settings, StepGraphs, TrainStep

if TYPE_CHECKING:
    from syncbn_convert.runtime.replica_run import ReplicaRun

Array = npt.NDArray[Any]


class XlaStep:
    """The graphs of a step as XLA programs.

    Args:
        models: The graphs.
        communicator: This host's end of the group of hosts.
        settings: How they are computed.

    Raises:
        ConversionError: if an operator has no translation.
        UsageError: if the devices do not compute in a type of the model.
    """

    draws_again = True
    """Whether a resumed run draws the random numbers that the whole run would have drawn."""

    @classmethod
    def for_run(cls, models: StepModels, run: ReplicaRun, *, seed: int) -> XlaStep:
        """Return the step for the devices of a run."""
        communicator = run.communicator
        assert isinstance(communicator, HostCommunicator)
        own = run.options.accelerators
        settings = Settings(
            precision=own.precision,
            has_double=devices.has_double(communicator.mesh),
            deterministic=own.deterministic,
            seed=seed,
        )
        return cls(models, communicator, settings)

    def __init__(
        self, models: StepModels, communicator: HostCommunicator, settings: Settings
    ) -> None:
        self.models = models
        self.communicator = communicator
        self.settings = settings
        trouble.check_double(models.gradient, communicator.mesh)
        self.step = TrainStep(graphs_of(models), communicator.mesh, settings)
        self.digest = digest(models.gradient)
        self.waited = self.ran = self.compiling = 0.0
        self.inputs = specs_of_graph(models.gradient)

    def replica(
        self, communicator: Communicator, agreement: Mapping[str, Any], usual: int
    ) -> XlaReplica:
        """Begin; all hosts call it together."""
        facts = {**agreement, "settings": self.settings, "jax": jax.__version__}
        trouble.agree(communicator, {**facts, "model": self.digest})
        return XlaReplica(self, usual)

    def evaluator(self, samples: Samples, batch_size: int) -> XlaEvaluator:
        """Return what evaluates the inference form."""
        return XlaEvaluator(self, samples, batch_size)

    @property
    def notes(self) -> list[str]:
        """What a user should know of a run that is done."""
        same = "the same bits in every run" if self._repeats else "no two runs alike in all bits"
        share = 100 * self.waited / self.ran if self.ran else 0.0
        depth, nodes = self.step.program.depth, len(self.step.program.synchronized_nodes)
        return [
            f"{devices.kind(self.step.mesh)}, precision {self.settings.precision}, {same}; "
            f"compiled in {self.compiling:.1f} s, {share:.0f} % of the rest spent waiting for data",
            f"statistics of {nodes} nodes in {depth} collectives a step, and as many backward",
        ]

    @property
    def _repeats(self) -> bool:
        on_cpu = self.step.mesh.devices.flat[0].platform == "cpu"
        return self.settings.deterministic or on_cpu


def graphs_of(models: StepModels) -> StepGraphs:
    """Return what an XLA step is made of."""
    metric, update = models.metric, models.update
    return StepGraphs(
        forward=models.gradient,
        loss=models.loss,
        statistics=training_form.statistics_of(models.gradient),
        update=update.proto,
        parameters=update.parameters,
        slots=update.slots,
        buckets=models.buckets,
        learning_rate=update.learning_rate,
        step=update.step,
        right=None if metric is None else _counting(metric),
        metric=None if metric is None else (metric.output, metric.labels),
    )


def _counting(metric: Metric) -> Any:
    def right(output: Any, labels: Any, weights: Any) -> Any:
        if metric.kind == "classes":
            if metric.one_hot:
                labels = jnp.argmax(labels, axis=metric.axis)
            hits = jnp.argmax(output, axis=metric.axis) == labels
        else:
            hits = (output > metric.threshold) == (labels > 0.5)
        counted = jnp.ones(labels.shape, bool)
        if metric.ignored is not None:
            counted = labels != metric.ignored
        if weights is not None:
            counted = counted & (weights.reshape(-1, *[1] * (labels.ndim - 1)) > 0)
        return jnp.stack([(hits & counted).sum(), counted.sum()]).astype(np.int32)

    return right


class XlaReplica:
    """The devices of this host: parameters, slots and statistics, and steps that change them.

    Args:
        loaded: The programs.
        usual: Samples of most micro-batches.
    """

    def __init__(self, loaded: XlaStep, usual: int) -> None:
        self._loaded = loaded
        self._step = loaded.step
        self._dealer = Dealer(loaded.step.mesh)
        self._usual = usual
        self._programs: dict[tuple[Any, ...], Any] = {}
        graphs = loaded.step.graphs
        self.updates = 0
        self.load(
            self._step.program.arrays(graphs.parameters),
            loaded.models.update.initial_slots(),
            self._step.program.arrays(graphs.statistics),
        )

    @property
    def parameters(self) -> dict[str, Array]:
        """Copies of the trained parameters by name."""
        return {name: np.array(value) for name, value in self._parameters.items()}

    @property
    def slots(self) -> dict[str, Array]:
        """Copies of the optimizer's slots by name."""
        return {name: np.array(value) for name, value in self._slots.items()}

    @property
    def statistics(self) -> dict[str, Array]:
        """Copies of the moving statistics by name."""
        return {name: np.array(value) for name, value in self._statistics.items()}

    def load(
        self,
        parameters: Mapping[str, Array],
        slots: Mapping[str, Array],
        statistics: Mapping[str, Array],
        updates: int = 0,
    ) -> None:
        """Begin from copies of this state."""
        self._parameters = self._step.put(parameters)
        self._slots = self._step.put(slots)
        self._statistics = self._step.put(statistics)
        self.updates = updates

    def steps(self, batches: Iterator[RatedBatch]) -> Iterator[StepOutcome]:
        """Update once for each batch; the next ones travel to the devices meanwhile.

        An outcome is yielded when the step after it is on its way, so that the devices need not
        wait; what is kept between them is right when the last one has been yielded.

        Raises:
            ReplicaError: if loss or statistics are not finite, or the devices lack memory.
        """
        pending: _Pending | None = None
        start = time.perf_counter()
        for micros, rate in ahead(self._placed, batches):
            self._loaded.waited += time.perf_counter() - start
            following = self._begin(micros, rate)
            if pending is not None:
                yield self._finish(pending)
            pending = following
            self._loaded.ran += time.perf_counter() - start
            start = time.perf_counter()
        if pending is not None:
            yield self._finish(pending)
        self._loaded.ran += time.perf_counter() - start

    def _placed(self, batch: RatedBatch) -> tuple[list[_Placed], float]:
        """Deal a batch to the devices."""
        micros, rate = batch
        names = self._step.inputs
        placed = []
        for micro in micros:
            share = {name: micro.feeds[name] for name in names}
            dealt = self._dealer.deal(share, micro.count, self._usual)
            arrays = self._step.deal({**dealt.arrays, _WEIGHTS: dealt.weights})
            placed.append(_Placed(micro.count, dealt, arrays.pop(_WEIGHTS), arrays))
        return placed, rate

    def _begin(self, micros: Sequence[_Placed], rate: float) -> _Pending:
        self.updates += 1
        samples = sum(micro.count for micro in micros)
        number, learning_rate = np.int64(self.updates), np.float32(rate)
        with jax.enable_x64(True), self._told(micros[0].dealt, "compiling"):
            if len(micros) == 1:
                losses = [self._whole(micros[0], learning_rate, number)]
            else:
                losses = self._accumulated(micros, samples, learning_rate, number)
        return _Pending(self.updates, samples, list(micros), losses, self._statistics)

    def _whole(self, micro: _Placed, rate: Any, number: Any) -> Any:
        step = self._step
        arguments = (
            self._parameters, self._slots, self._statistics, step.frozen, micro.arrays,
            micro.weights, rate, number,
        )  # fmt: skip
        make = lambda: step.whole(weighted=micro.dealt.padded)  # noqa: E731
        program = self._compiled("step", micro, make, arguments)
        self._parameters, self._slots, self._statistics, loss, right = program(*arguments)
        return loss, right

    def _accumulated(
        self, micros: Sequence[_Placed], samples: int, rate: Any, number: Any
    ) -> list[Any]:
        step, losses = self._step, []
        sums = step.zero_sums(self._parameters)
        for index, micro in enumerate(micros):
            arguments = (
                sums, self._statistics, self._parameters, step.frozen, micro.arrays, micro.weights,
                np.float64(micro.count / samples), number, np.int64(index),
            )  # fmt: skip
            make = lambda: step.accumulating(weighted=micro.dealt.padded)  # noqa: B023, E731
            program = self._compiled("micro", micro, make, arguments)
            sums, self._statistics, loss, right = program(*arguments)
            losses.append((loss, right))
        last = (self._parameters, self._slots, sums, rate, number)
        program = self._compiled("update", None, step.applying, last)
        self._parameters, self._slots = program(*last)
        return losses

    def _compiled(self, what: str, micro: _Placed | None, make: Any, arguments: Any) -> Any:
        key = (what,) if micro is None else (what, micro.dealt.padded, micro.dealt.size)
        if key not in self._programs:
            start = time.perf_counter()
            size = micro.dealt.size if micro is not None else 0
            self._programs[key] = compiled(make(), arguments)
            trouble.check_fits(self._programs[key], self._step.mesh, size)
            self._loaded.compiling += time.perf_counter() - start
            self._loaded.ran -= time.perf_counter() - start
        return self._programs[key]

    def _finish(self, pending: _Pending) -> StepOutcome:
        loss, right, labels = 0.0, 0, 0
        with self._told(pending.micros[0].dealt, f"step {pending.update}"):
            for micro, (value, hits) in zip(pending.micros, pending.losses, strict=True):
                loss += float(value) * (micro.count / pending.samples)
                for shard in hits.addressable_shards:
                    found = np.asarray(shard.data).reshape(2)
                    right, labels = right + int(found[0]), labels + int(found[1])
        if not np.isfinite(loss):
            self._raise_not_finite(loss, pending)
        return StepOutcome(loss, pending.samples, right, labels, memory_of(self._step.mesh))

    def _told(self, dealt: Dealt, what: str) -> Any:
        return trouble.told(self._step.mesh, dealt.size, self._loaded.communicator.patience(what))

    def _raise_not_finite(self, loss: float, pending: _Pending) -> None:
        """All hosts come here together, as they share the loss."""
        following = self._step.graphs.statistics
        for node in self._step.program.synchronized_nodes:
            name = next(
                (key for key, output in following.items() if output == node.outputs[1].name), None
            )
            state = pending.statistics.get(name) if name is not None else None
            if state is None or state.is_deleted() or np.isfinite(np.asarray(state)).all():
                continue
            raise ReplicaError(
                f"node '{node.name}': batch statistics are not finite in step {pending.update}"
                f"{trouble.culprits(pending.micros[0].dealt)}; look for NaN or infinity in the "
                "data, or overflow before the node",
                reporter=0,
            )
        raise ReplicaError(
            f"the loss is {loss} in step {pending.update}; lower the learning rate, or look for "
            "NaN, infinity or huge values in the data",
            reporter=0,
        )


_WEIGHTS = "\0weights"


class _Placed:
    """A micro-batch on the devices."""

    def __init__(self, count: int, dealt: Dealt, weights: Any, arrays: dict[str, Any]) -> None:
        self.count = count
        self.dealt = dealt
        self.weights = weights
        self.arrays = arrays


class _Pending:
    """A step that has been sent to the devices."""

    def __init__(
        self,
        update: int,
        samples: int,
        micros: list[_Placed],
        losses: list[Any],
        statistics: Mapping[str, Any],
    ) -> None:
        self.update = update
        self.samples = samples
        self.micros = micros
        self.losses = losses
        self.statistics = statistics


def memory_of(mesh: Any) -> int | None:
    """Return the most memory that a device of this host has used, in bytes, if it knows."""
    stats = mesh.local_devices[0].memory_stats()
    return None if not stats else int(stats.get("peak_bytes_in_use", 0)) or None
