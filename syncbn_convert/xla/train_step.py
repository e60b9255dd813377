"""A whole training step as one XLA program."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnx_ir as ir
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from syncbn_convert.form.buckets import Bucket
from syncbn_convert.xla.program import Program
from syncbn_convert.xla.traced_run import Axis, Run

Array = Any
Arrays = dict[str, Array]
REPLICAS = "replicas"
"""Name of the mesh's axis."""
_ALIKE, _DEALT, _STACKED = PartitionSpec(), PartitionSpec(REPLICAS), PartitionSpec(None, REPLICAS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepGraphs:
    """What a step is made of.

    Attributes:
        forward: A model with its loss; gradients in it are not used.
        loss: The output that holds the loss.
        statistics: The output that holds the next value of each moving statistic.
        update: Parameters, slots, buckets, learning rate and step to next parameters and slots.
        parameters: Output of `update` by parameter.
        slots: Output of `update` by slot.
        buckets: How gradients are packed for `update`.
        learning_rate: Its input, float32.
        step: Its input, int64, from 1.
        right: Takes an output, the labels and their weights, and returns how many predictions are
            right and how many there are; None where the loss does not tell.
        metric: Names of that output and of the labels.
    """

    forward: ir.Model
    loss: str
    statistics: Mapping[str, str]
    update: onnx.ModelProto
    parameters: Mapping[str, str]
    slots: Mapping[str, str]
    buckets: Sequence[Bucket]
    learning_rate: str
    step: str
    right: Callable[[Array, Array, Array | None], Array] | None = None
    metric: tuple[str, str] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a step is computed.

    Attributes:
        precision: `float32`, `tf32` or `bfloat16`.
        has_double: Whether the devices compute in float64.
        deterministic: Whether the same numbers come out of every run.
        seed: Of Dropout and its like.
        synchronized: Whether replicas share statistics; if not, for comparison, each has its own.
    """

    precision: str = "float32"
    has_double: bool = True
    deterministic: bool = False
    seed: int = 0
    synchronized: bool = True

    def compiler_options(self, platform: str) -> dict[str, Any]:
        """Return what XLA is told."""
        if not self.deterministic or platform not in ("gpu", "cuda", "rocm"):
            return {}
        return {"xla_gpu_deterministic_ops": True}


@dataclasses.dataclass
class TrainState:
    """What changes from step to step, on the devices."""

    parameters: Arrays
    slots: Arrays
    statistics: Arrays


class TrainStep:
    """Compiles and runs the steps of a model on a mesh of devices.

    Args:
        graphs: What a step is made of.
        mesh: Devices along the axis `REPLICAS`.
        settings: How it is computed.

    Raises:
        ConversionError: if an operator has no translation.
    """

    def __init__(self, graphs: StepGraphs, mesh: Mesh, settings: Settings) -> None:
        self.graphs = graphs
        self.mesh = mesh
        self.settings = settings
        outputs = [graphs.loss, *graphs.statistics.values()]
        if graphs.metric is not None and graphs.metric[0] not in outputs:
            outputs.append(graphs.metric[0])
        trained = {*graphs.parameters, *graphs.statistics}
        self.program = Program(graphs.forward, outputs, trained)
        updated = ir.from_proto(graphs.update)
        bound = [*graphs.parameters.values(), *graphs.slots.values()]
        self.update = Program(updated, bound)
        frozen = [name for name in self.program.state if name not in trained]
        self.frozen = self.put(self.program.arrays(frozen))
        self.inputs = [name for name in self.program.inputs if name not in trained]

    def put(self, arrays: Mapping[str, Array]) -> Arrays:
        """Return copies on every device."""
        sharding = NamedSharding(self.mesh, _ALIKE)
        with jax.enable_x64(True):
            return {name: _put(array, sharding) for name, array in arrays.items()}

    def deal(self, arrays: Mapping[str, Array], *, stacked: bool = False) -> Arrays:
        """Return arrays that are dealt to the devices; this host's share is given.

        Args:
            arrays: By name; their first axis is dealt.
            stacked: Whether there are several batches along the first axis, and the next is dealt.
        """
        sharding = NamedSharding(self.mesh, _STACKED if stacked else _DEALT)
        with jax.enable_x64(True):
            return {
                name: jax.make_array_from_process_local_data(sharding, np.ascontiguousarray(array))
                for name, array in arrays.items()
            }

    @functools.cached_property
    def axis(self) -> Axis | None:
        """The axis of the replicas; None for one alone, which needs no collectives."""
        size = self.mesh.size
        return Axis(REPLICAS, size) if size > 1 and self.settings.synchronized else None

    def _run(self, weights: Array | None, key: Array) -> Run:
        return Run(
            axis=self.axis,
            key=key,
            weights=weights,
            precision=self.settings.precision,
            has_double=self.settings.has_double,
        )

    def gradients(
        self,
        parameters: Arrays,
        statistics: Arrays,
        frozen: Arrays,
        inputs: Arrays,
        weights: Array | None,
        key: Array,
    ) -> tuple[Array, Arrays, Arrays, Array]:
        """Return loss, local gradients, next statistics, and right predictions of a replica."""
        graphs = self.graphs

        def loss_of(given: Arrays) -> tuple[Array, tuple[Arrays, Array]]:
            state = {**frozen, **statistics, **given}
            found = self.program(state, inputs, self._run(weights, key)).outputs
            following = {name: found[output] for name, output in graphs.statistics.items()}
            right = jnp.zeros(2, np.int32)
            if graphs.metric is not None and graphs.right is not None:
                output, labels = graphs.metric
                right = graphs.right(found[output], inputs[labels], weights)
            return found[graphs.loss], (following, right)

        (loss, (following, right)), slopes = jax.value_and_grad(loss_of, has_aux=True)(parameters)
        return loss, slopes, self._averaged(following), right.reshape(1, 2)

    def _averaged(self, statistics: Arrays) -> Arrays:
        """Give all groups of replicas the mean of their moving statistics."""
        axis = self.axis
        sizes = {
            node.attributes.get_int("group_size", 0) for node in self.program.synchronized_nodes
        }
        if axis is None or not any(axis.groups(size) for size in sizes):
            return statistics
        wire = np.float64 if self.settings.has_double else np.float32
        means = lax.pmean({k: v.astype(wire) for k, v in statistics.items()}, axis.name)
        return {name: means[name].astype(value.dtype) for name, value in statistics.items()}

    def updated(
        self, parameters: Arrays, slots: Arrays, slopes: Arrays, rate: Array, step: Array
    ) -> tuple[Arrays, Arrays]:
        """Return parameters and slots after an update by gradients that replicas share."""
        graphs = self.graphs
        if self.mesh.size > 1:
            slopes = lax.psum(slopes, REPLICAS)
        packed = {
            bucket.name: jnp.concatenate(
                [slopes[entry.name].reshape(-1) for entry in bucket.entries]
            )
            for bucket in graphs.buckets
        }
        scalars = {graphs.learning_rate: rate, graphs.step: step}
        feeds = {**parameters, **slots, **packed, **scalars}
        found = self.update({}, feeds, Run(has_double=self.settings.has_double)).outputs
        return (
            {name: found[output] for name, output in graphs.parameters.items()},
            {name: found[output] for name, output in graphs.slots.items()},
        )

    def whole(self, *, weighted: bool, steps: int = 1) -> Any:
        """Return a jitted step: gradients of one batch and their update; or several of them.

        Its arguments: parameters, slots, statistics, frozen arrays, inputs, weights (a vector or,
        where not weighted, anything), learning rate, step. It returns the first three, the loss,
        and right and counted predictions of each replica. Several steps take inputs with one more
        axis in front, have one learning rate, and return one loss each.
        """

        def step(
            parameters: Arrays,
            slots: Arrays,
            statistics: Arrays,
            frozen: Arrays,
            inputs: Arrays,
            weights: Array,
            rate: Array,
            number: Array,
        ) -> Any:
            key = self._key(number, 0)
            loss, slopes, following, right = self.gradients(
                parameters, statistics, frozen, inputs, weights if weighted else None, key
            )
            parameters, slots = self.updated(parameters, slots, slopes, rate, number)
            return parameters, slots, following, loss, right

        def several(
            parameters: Arrays,
            slots: Arrays,
            statistics: Arrays,
            frozen: Arrays,
            inputs: Arrays,
            weights: Array,
            rate: Array,
            number: Array,
        ) -> Any:
            def one(state: Any, batch: Arrays) -> Any:
                given, slots, statistics, count = state
                found = step(given, slots, statistics, frozen, batch, weights, rate, count)
                given, slots, statistics, loss, right = found
                return (given, slots, statistics, count + 1), (loss, right)

            begin = (parameters, slots, statistics, jnp.asarray(number))
            (*arrays, _), (losses, right) = lax.scan(one, begin, inputs)
            return *arrays, losses, right.sum(0)

        fed = _DEALT if steps == 1 else _STACKED
        specs = (_ALIKE, _ALIKE, _ALIKE, _ALIKE, fed, _DEALT, _ALIKE, _ALIKE)
        results = (_ALIKE, _ALIKE, _ALIKE, _ALIKE, _DEALT)
        return self._jitted(step if steps == 1 else several, specs, results, donated=(0, 1, 2))

    def accumulating(self, *, weighted: bool) -> Any:
        """Return a jitted part of a step: the gradients of a micro-batch, added to those before.

        Its arguments: sums of gradients (one row a replica), statistics, parameters, frozen arrays,
        inputs, weights, share of the micro-batch, step, number of the micro-batch. It returns the
        first two, the loss, and right and counted predictions.
        """

        def accumulate(
            sums: Arrays,
            statistics: Arrays,
            parameters: Arrays,
            frozen: Arrays,
            inputs: Arrays,
            weights: Array,
            share: Array,
            number: Array,
            micro: Array,
        ) -> Any:
            key = self._key(number, micro)
            loss, slopes, following, right = self.gradients(
                parameters, statistics, frozen, inputs, weights if weighted else None, key
            )
            added = {
                name: sums[name] + (slope * share.astype(slope.dtype))[None]
                for name, slope in slopes.items()
            }
            return added, following, loss, right

        specs = (_DEALT, _ALIKE, _ALIKE, _ALIKE, _DEALT, _DEALT, _ALIKE, _ALIKE, _ALIKE)
        results = (_DEALT, _ALIKE, _ALIKE, _DEALT)
        return self._jitted(accumulate, specs, results, donated=(0, 1))

    def applying(self) -> Any:
        """Return the jitted update by sums of gradients, one row a replica."""

        def apply(
            parameters: Arrays, slots: Arrays, sums: Arrays, rate: Array, number: Array
        ) -> Any:
            slopes = {name: value[0] for name, value in sums.items()}
            return self.updated(parameters, slots, slopes, rate, number)

        specs = (_ALIKE, _ALIKE, _DEALT, _ALIKE, _ALIKE)
        return self._jitted(apply, specs, (_ALIKE, _ALIKE), donated=(0, 1, 2))

    def zero_sums(self, parameters: Arrays) -> Arrays:
        """Return sums of no gradients, one row a replica."""
        local = sum(device.process_index == jax.process_index() for device in self.mesh.devices)
        return self.deal(
            {
                name: np.zeros((local, *value.shape), value.dtype)
                for name, value in parameters.items()
            }
        )

    def evaluating(self, program: Program, *, weighted: bool, loss: str) -> Any:
        """Return a jitted evaluation of a model in inference form."""
        graphs = self.graphs

        def evaluate(state: Arrays, inputs: Arrays, weights: Array) -> Any:
            run = dataclasses.replace(
                self._run(weights if weighted else None, None), training=False
            )
            found = program(state, inputs, run).outputs
            right = jnp.zeros(2, np.int32)
            if graphs.metric is not None and graphs.right is not None:
                output, labels = graphs.metric
                right = graphs.right(found[output], inputs[labels], weights if weighted else None)
            return found[loss], right.reshape(1, 2)

        return self._jitted(evaluate, (_ALIKE, _DEALT, _DEALT), (_ALIKE, _DEALT), donated=())

    def _key(self, number: Array, micro: Array | int) -> Array:
        key = jax.random.fold_in(jax.random.key(self.settings.seed), number)
        return jax.random.fold_in(key, micro)

    def _jitted(self, function: Any, specs: Any, results: Any, donated: tuple[int, ...]) -> Any:
        mapped = jax.shard_map(
            function, mesh=self.mesh, in_specs=specs, out_specs=results, check_vma=False
        )
        platform = self.mesh.devices.flat[0].platform
        options = self.settings.compiler_options(platform)
        return jax.jit(mapped, donate_argnums=donated, compiler_options=options or None)


def _put(array: Array, sharding: NamedSharding) -> Array:
    """Return a copy on every device of every host, whose values all have."""
    value = np.asarray(array)
    if jax.process_count() == 1:
        return jax.device_put(value, sharding)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
