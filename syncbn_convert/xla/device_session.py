"""A training form on devices, and its moving statistics between steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from syncbn_convert.errors import ReplicaError
from syncbn_convert.files import model_file
from syncbn_convert.form import opset, training_form
from syncbn_convert.form.stateful_layers import layers_of
from syncbn_convert.graph import graphs
from syncbn_convert.passes.gradients.gradient_tape import MIN_OPSET
from syncbn_convert.runtime.communicator import Communicator
from syncbn_convert.runtime.fitting import specs_of_graph
from syncbn_convert.runtime.observed_form import digest
from syncbn_convert.xla import devices, trouble
from syncbn_convert.xla.dealing import Dealer, Dealt
from syncbn_convert.xla.hosts import HostCommunicator
from syncbn_convert.xla.program import Program
from syncbn_convert.xla.traced_run import Axis, Run
from syncbn_convert.xla.train_step import REPLICAS

if TYPE_CHECKING:
    from syncbn_convert.runtime.replica_run import ReplicaRun

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
_ALIKE, _DEALT = PartitionSpec(), PartitionSpec(REPLICAS)


class XlaForm:
    """A training form for the devices of all hosts.

    Args:
        model: The training form; not changed.
        communicator: This host's end of the group of hosts.
        precision: Of products.

    Raises:
        ConversionError: if an operator has no translation.
    """

    @classmethod
    def for_run(cls, form: ir.Model, run: ReplicaRun) -> XlaForm:
        """Load a form for the devices of a run."""
        communicator = run.communicator
        assert isinstance(communicator, HostCommunicator)
        return cls(form, communicator, run.options.accelerators.precision)

    def __init__(self, model: ir.Model, communicator: HostCommunicator, precision: str) -> None:
        form = model_file.as_model(model)
        if graphs.opset_version(form) < MIN_OPSET:
            opset.raise_opset(form, MIN_OPSET)
        nodes = training_form.nodes(form)
        self.digest = digest(form)
        self.layers = layers_of(form)
        self.nodes = [graphs.label(node) for node in nodes]
        self.group_sizes = sorted({node.attributes.get_int("group_size", 0) for node in nodes})
        self.partial_totals = [0] * len(nodes)
        self.following = training_form.statistics_of(form)
        self.program = Program(form, list(self.following.values()), self.following)
        self.state = self.program.arrays(self.following)
        self.inputs = specs_of_graph(form)
        self.communicator = communicator
        self.mesh = communicator.mesh
        self.precision = precision
        trouble.check_double(form, self.mesh)

    def open(self, communicator: Communicator, agreement: Mapping[str, Any]) -> XlaSession:
        """Begin; all hosts call it together."""
        trouble.agree(communicator, {**agreement, "jax": jax.__version__, "model": self.digest})
        return XlaSession(self, self.communicator)


class XlaSession:
    """Runs a form on devices and keeps its moving statistics between steps."""

    def __init__(self, form: XlaForm, communicator: HostCommunicator) -> None:
        self.communicator = communicator
        self._form = form
        self._dealer = Dealer(form.mesh)
        self._usual = 0
        self._steps = 0
        self._run: dict[bool, Any] = {}
        self._state = {name: array.copy() for name, array in form.state.items()}
        weights = {
            name: array
            for name, array in form.program.arrays().items()
            if name not in form.following
        }
        self._weights = self._put(weights, _ALIKE)

    @property
    def state(self) -> dict[str, Array]:
        """Copies of the moving statistics by name of their initializers."""
        return {name: np.array(array) for name, array in self._state.items()}

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Set moving statistics to copies of these arrays; those not named stay."""
        self._state.update({name: array.copy() for name, array in state.items()})

    def global_step(self, batch: Mapping[str, Array], *, update: bool) -> list[Float64]:
        """Run one step; return each node's totals over all devices.

        Raises:
            ReplicaError: if a batch statistic is not finite, or the devices lack memory.
        """
        count = len(next(iter(batch.values())))
        self._usual = max(self._usual, count)
        self._steps += 1
        size, rank = self.communicator.size, self.communicator.rank
        bounds = slice(count * rank // size, count * (rank + 1) // size)
        share = {name: batch[name][bounds] for name in self._form.program.inputs}
        dealt = self._dealer.deal(share, count, self._usual)
        patience = self.communicator.patience(f"step {self._steps}")
        with trouble.told(self._form.mesh, dealt.size, patience):
            following, flat = self._call(dealt)
            totals = _split(np.asarray(flat, np.float64), self._form)
        bad = next((i for i, total in enumerate(totals) if not np.isfinite(total).all()), None)
        if bad is not None:
            raise ReplicaError(
                f"node '{self._form.nodes[bad]}': batch statistics are not finite in step "
                f"{self._steps}{trouble.culprits(dealt)}; look for NaN or infinity in the data, or "
                "overflow before the node",
                reporter=0,
            )
        if update:
            self._state = {name: np.asarray(array) for name, array in following.items()}
        return totals

    def _call(self, dealt: Dealt) -> Any:
        with jax.enable_x64(True):
            if dealt.padded not in self._run:
                self._run[dealt.padded] = self._jitted(weighted=dealt.padded)
            return self._run[dealt.padded](
                {**self._weights, **self._put(self._state, _ALIKE)},
                self._put(dealt.arrays, _DEALT),
                self._put({"weights": dealt.weights}, _DEALT)["weights"],
            )

    def _put(self, arrays: Mapping[str, Array], spec: PartitionSpec) -> dict[str, Any]:
        sharding = NamedSharding(self._form.mesh, spec)
        with jax.enable_x64(True):
            return {
                name: jax.make_array_from_process_local_data(sharding, np.ascontiguousarray(array))
                for name, array in arrays.items()
            }

    def _jitted(self, *, weighted: bool) -> Any:
        form = self._form
        size = form.mesh.size
        axis = Axis(REPLICAS, size) if size > 1 else None

        def step(state: Any, inputs: Any, weights: Any) -> Any:
            run = Run(
                axis=axis,
                weights=weights if weighted else None,
                key=jax.random.key(0),
                precision=form.precision,
                has_double=devices.has_double(form.mesh),
            )
            found = form.program(state, inputs, run)
            following = {name: found.outputs[output] for name, output in form.following.items()}
            flat = jnp.concatenate([_sums(found.totals[i]) for i in range(len(form.nodes))])
            apart = [size for size in form.group_sizes if axis is not None and axis.groups(size)]
            if apart and axis is not None:
                flat = lax.psum(flat / _shares(form, axis), axis.name)
            return following, flat

        mapped = jax.shard_map(
            step,
            mesh=form.mesh,
            in_specs=(_ALIKE, _DEALT, _DEALT),
            out_specs=(_ALIKE, _ALIKE),
            check_vma=False,
        )
        return jax.jit(mapped)


def _sums(total: Any) -> Any:
    """Return count, and count times mean and second moment, of count, mean and variance."""
    channels = (total.size - 1) // 2
    count, mean, var = total[:1], total[1 : channels + 1], total[channels + 1 :]
    return jnp.concatenate([count, count * mean, count * (var + jnp.square(mean))])


def _shares(form: XlaForm, axis: Axis) -> Array:
    """Return how many replicas give each number of the totals."""
    sizes = {call: layer.channels for layer in form.layers for call in layer.calls}
    nodes = form.program.synchronized_nodes
    return np.concatenate(
        [
            np.full(
                2 * sizes[index] + 1,
                node.attributes.get_int("group_size", 0) or axis.size,
                np.float64,
            )
            for index, node in enumerate(nodes)
        ]
    )


def _split(flat: Float64, form: XlaForm) -> list[Float64]:
    sizes = {call: layer.channels for layer in form.layers for call in layer.calls}
    bounds = np.cumsum([2 * sizes[index] + 1 for index in range(len(sizes))])[:-1]
    return np.split(flat, bounds)
