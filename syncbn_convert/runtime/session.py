"""One replica: the training form on ONNX Runtime, its state, and its place among the others."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
from onnxruntime import OrtValue
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented  # noqa: A004

from syncbn_convert.errors import ConversionError, ReplicaError, UsageError, first_line
from syncbn_convert.files import model_file
from syncbn_convert.files.model_file import ModelLike
from syncbn_convert.form import provenance, training_form
from syncbn_convert.form.stateful_layers import Layer, layers_of
from syncbn_convert.graph import graphs
from syncbn_convert.runtime.all_reduce_operator import CollectiveStep, collectives, library_path
from syncbn_convert.runtime.communicator import (
    Communicator,
    Float64,
    LocalCommunicator,
    Summing,
)
from syncbn_convert.runtime.datasets import piece
from syncbn_convert.runtime.fitting import InputSpec, specs_of
from syncbn_convert.runtime.observed_form import digest, observe
from syncbn_convert.runtime.onnx_session import open_session

if TYPE_CHECKING:
    from syncbn_convert.runtime.replica_run import ReplicaRun

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Extension = Callable[[ir.Model, Sequence[ir.Value]], None]


class LoadedForm:
    """A training form in ONNX Runtime, shared by the replicas of one process.

    Args:
        model: The training form.
        threads: Intra-op threads of one run.
        extend: Called with the observed form and its totals, to add outputs of its own.
        alone: Whether it only ever runs as one replica: AllReduce then stays the Identity that it
            is in the file, which is quicker than calling an operator.
        stateless: Whether a model without synchronized nodes will do.

    Raises:
        UsageError: if `model` is no training form, or one whose replicas would share nothing.
        ConversionError: if another tool has taken parts of the form away.
    """

    @classmethod
    def for_run(cls, form: ir.Model, run: ReplicaRun) -> LoadedForm:
        """Load a form for the replicas of a process."""
        return cls(form, run.options.threads(run.local_size), alone=run.size == 1)

    def __init__(
        self,
        model: ModelLike,
        threads: int = 1,
        *,
        extend: Extension | None = None,
        alone: bool = False,
        stateless: bool = False,
    ) -> None:
        form = model_file.as_model(model)
        nodes = training_form.nodes(form)
        if not nodes and not stateless:
            raise UsageError(
                "the model is no training form: it holds no SyncBatchNormalization; convert it "
                "first"
            )
        training_form.check_whole(form)
        apart = provenance.unsynchronized(form)
        if apart:
            raise UsageError(
                f"node '{graphs.label(apart[0])}' is not synchronized, and replicas would drift "
                "apart; convert the model without --no-sync"
            )
        self.digest = digest(form)
        self.input_names = [
            str(value.name) for value in form.graph.inputs if not value.is_initializer()
        ]
        self.nodes = [graphs.label(node) for node in nodes]
        self.group_size_of = [node.attributes.get_int("group_size", 0) for node in nodes]
        self.group_sizes = sorted(set(self.group_size_of))
        self.layers = layers_of(form)
        self.bindings = _bindings(self.layers, nodes)
        self.state = {name: _array(form, name) for name in self.bindings}
        totals = observe(form)
        self.total_names = [str(total.name) for total in totals]
        if extend is not None:
            extend(form, totals)
        self.output_names = [
            str(output.name) for output in form.graph.outputs if output.name not in self.total_names
        ]
        self.alone = alone
        self.session = open_model(form, "form", threads, alone=alone)

    @property
    def inputs(self) -> list[InputSpec]:
        """What it takes for the inputs that are no initializers."""
        return specs_of(self.session, self.input_names)

    @property
    def partial_totals(self) -> list[int]:
        """Of each node: the size of the group that its totals are of."""
        return self.group_size_of

    def open(self, communicator: Communicator, agreement: Mapping[str, Any]) -> ReplicaSession:
        """Begin as one replica; see `ReplicaSession`."""
        return ReplicaSession(self, communicator, agreement=agreement)


def _bindings(layers: Sequence[Layer], nodes: Sequence[ir.Node]) -> dict[str, str]:
    """Return the output that holds the next value of each moving statistic."""
    bindings: dict[str, str] = {}
    for layer in layers:
        last = nodes[layer.calls[-1]]
        bindings[layer.mean], bindings[layer.var] = (str(out.name) for out in last.outputs[1:3])
    return bindings


def _array(form: ir.Model, name: str) -> Array:
    tensor = form.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy().copy()


def open_model(
    model: ir.Model, name: str, threads: int, *, alone: bool
) -> onnxruntime.InferenceSession:
    """Load a model through a temporary file, as its weights can be more than a protobuf holds.

    Args:
        model: What to load.
        name: Name of the file, by which ONNX Runtime's errors call the model.
        threads: Intra-op threads of one run.
        alone: Whether there is only one replica, so that AllReduce is no operator of our own.

    Raises:
        ConversionError: if ONNX Runtime refuses it, or has no kernel for a node.
    """
    custom_operators = None if alone else library_path()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.onnx"
        model_file.write_model(model, path)
        try:
            return open_session(path, threads=threads, custom_operators=custom_operators)
        except NotImplemented as error:
            raise ConversionError(
                f"ONNX Runtime cannot run the model: {first_line(error)}; it has no kernel of that "
                "operator for this element type: give a float32 model"
            ) from error
        except Exception as error:  # whatever ONNX Runtime raises
            raise ConversionError(
                f"model '{model.graph.name}': ONNX Runtime cannot load it: {first_line(error)}; "
                "see what 'syncbn-convert verify MODEL MODEL' says"
            ) from error


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What one step returned on one replica.

    Attributes:
        outputs: The form's own outputs by name; those that are no tensors are left out.
        totals: Each node's global [count, count * mean, count * (variance + mean^2)], float64.
    """

    outputs: dict[str, Array]
    totals: list[Float64]


class ReplicaSession:
    """Runs a training form as one replica and keeps its moving statistics between steps.

    Args:
        model: The training form, or one that is loaded already.
        communicator: This replica's end of the group; None runs alone.
        threads: Intra-op threads, where `model` is not loaded already.
        agreement: Further facts that must be the same on all replicas, by name.

    Raises:
        ReplicaError: if the replicas do not agree on the model or on `agreement`.
    """

    def __init__(
        self,
        model: ModelLike | LoadedForm,
        communicator: Communicator | None = None,
        *,
        threads: int = 1,
        agreement: Mapping[str, Any] | None = None,
    ) -> None:
        self.communicator: Communicator = communicator or LocalCommunicator()
        alone = self.communicator.size == 1
        self.form = (
            model if isinstance(model, LoadedForm) else LoadedForm(model, threads, alone=alone)
        )
        if self.form.alone and not alone:
            raise ValueError("a form that is loaded to run alone cannot meet other replicas")
        self.steps = 0
        _agree(self.communicator, self.form, agreement or {})
        self._groups: dict[int, Summing] = {
            size: self.communicator.split(size) if size else self.communicator
            for size in {0, *self.form.group_sizes}
        }
        self._run_options = onnxruntime.RunOptions()
        self._ended_by = ""
        self.communicator.when_failed(self._terminate)
        self._state: dict[str, OrtValue] = {}
        self.load_state(self.form.state)

    @property
    def state(self) -> dict[str, Array]:
        """Copies of the moving statistics by name of their initializers."""
        return {name: value.numpy().copy() for name, value in self._state.items()}

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Set moving statistics to copies of these arrays; those not named stay."""
        for name, value in state.items():
            self._state[name] = OrtValue.ortvalue_from_numpy(value.copy())

    def global_step(self, batch: Feeds, *, update: bool) -> list[Float64]:
        """Run one step on this replica's piece of a global batch; return the nodes' totals."""
        own = piece(batch, self.communicator.rank, self.communicator.size)
        return self.step(own, update=update).totals

    def step(self, feeds: Feeds, *, update: bool = True) -> StepResult:
        """Run one global step; all replicas call it together.

        Args:
            feeds: This replica's piece of the global batch, by input name; it may be empty. Moving
                statistics that are fed count for this step in place of the state.
            update: Whether the moving statistics move.

        Raises:
            ReplicaError: if a replica failed, or a batch statistic is not finite.
        """
        values = {
            name: OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
            for name, array in feeds.items()
        }
        by_name, totals = self.run(values, update=update)
        tensors = (name for name in self.form.output_names if by_name[name].is_tensor())
        outputs = {name: by_name[name].numpy() for name in tensors}
        return StepResult(outputs, totals)

    def run(
        self, values: Mapping[str, OrtValue], *, update: bool = True
    ) -> tuple[dict[str, OrtValue], list[Float64]]:
        """Run one global step as `step` does, without copying what goes in and comes out.

        Args:
            values: This replica's piece of the global batch, and other inputs of the form.
            update: Whether the moving statistics move.

        Returns:
            The form's outputs by name, and the totals of its nodes.
        """
        step = CollectiveStep(self._groups)
        names = [*self.form.output_names, *self.form.total_names]
        self.steps += 1
        with collectives(step):
            try:
                results = self.form.session.run_with_ort_values(
                    names, {**self._state, **values}, self._run_options
                )
            except Exception as error:
                self._fail(step, error)
                raise
        if step.error is not None:
            raise step.error
        by_name = dict(zip(names, results, strict=True))
        totals = [by_name[name].numpy() for name in self.form.total_names]
        if totals and not np.isfinite(np.concatenate(totals)).all():
            self._raise_non_finite(totals, step.payloads or totals)
        if update:
            self.load_state(
                {key: by_name[output].numpy() for key, output in self.form.bindings.items()}
            )
        return by_name, totals

    def _terminate(self, message: str) -> None:
        """End the run that goes on, if it comes from node to node, and those that would follow."""
        self._ended_by = message
        self._run_options.terminate = True

    def _fail(self, step: CollectiveStep, error: Exception) -> None:
        """Turn what ONNX Runtime raised into an error that the other replicas share."""
        if step.error is not None:
            raise step.error from error
        if self._ended_by:
            raise ReplicaError(self._ended_by) from error
        message = f"replica {self.communicator.rank}, step {self.steps}: {first_line(error)}"
        self.communicator.abort(message)
        raise ReplicaError(message) from error

    def _raise_non_finite(self, totals: Sequence[Float64], payloads: Sequence[Float64]) -> None:
        """All replicas of a group come here together, as they share its sums."""
        index = _first_non_finite(totals)
        world, rank = self.communicator.size, self.communicator.rank
        group_size = self.form.group_size_of[index]
        size = group_size or world
        bad_payload = _first_non_finite(payloads)
        calls = np.zeros(size)
        calls[rank % size] = bad_payload if bad_payload >= 0 else len(payloads)
        calls = self._groups[group_size].all_reduce_sum(calls)
        first = rank - rank % size
        culprits = [str(first + other) for other in np.flatnonzero(calls == calls.min())]
        raise ReplicaError(
            f"node '{self.form.nodes[index]}': batch statistics are not finite in step "
            f"{self.steps}, from replica {', '.join(culprits)}; look for NaN or infinity in its "
            "data, or overflow before the node",
            reporter=0 if size == world else None,
        )


def _first_non_finite(arrays: Sequence[Float64]) -> int:
    """Return the index of the first array that holds NaN or infinity, or -1."""
    return next((i for i, array in enumerate(arrays) if not np.isfinite(array).all()), -1)


def _agree(communicator: Communicator, form: LoadedForm, agreement: Mapping[str, Any]) -> None:
    mine = {
        "number of collectives": len(form.nodes),
        "group sizes": form.group_sizes,
        "input types": {value.name: value.type for value in form.session.get_inputs()},
        "dtypes": {name: str(value.dtype) for name, value in form.state.items()},
        "onnxruntime": onnxruntime.__version__,
        **agreement,
        "model": form.digest,
    }
    everyone = communicator.all_gather(mine)
    for rank, theirs in enumerate(everyone):
        for name in {**everyone[0], **theirs}:
            if theirs.get(name) != everyone[0].get(name):
                raise ReplicaError(
                    f"replica {rank} differs from replica 0 in {name}: "
                    f"{_difference(theirs.get(name), everyone[0].get(name))}; "
                    "start all replicas alike",
                    reporter=0,
                )


def _difference(theirs: Any, mine: Any) -> str:
    """Return two unequal values; of dictionaries only the first entry that differs."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        key = next(key for key in {**mine, **theirs} if theirs.get(key) != mine.get(key))
        return f"{key} {_short(theirs.get(key))} against {_short(mine.get(key))}"
    return f"{_short(theirs)} against {_short(mine)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
