"""What calibration needs of a form that an engine has loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from syncbn_convert.form.stateful_layers import Layer
from syncbn_convert.runtime.communicator import Communicator
from syncbn_convert.runtime.fitting import InputSpec

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


class FormSession(Protocol):
    """A form that runs, and its moving statistics between steps."""

    @property
    def communicator(self) -> Communicator:
        """This process's end of the group of processes, or this replica's of the replicas."""

    @property
    def state(self) -> dict[str, Array]:
        """Copies of the moving statistics by name of their initializers."""

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Set moving statistics to copies of these arrays; those not named stay."""

    def global_step(self, batch: Mapping[str, Array], *, update: bool) -> list[Float64]:
        """Run one step on this one's piece of a batch that all have.

        Args:
            batch: Samples of all replicas by name of input.
            update: Whether the moving statistics move.

        Returns:
            Each node's global [count, count * mean, count * (variance + mean^2)].
        """


class RunnableForm(Protocol):
    """A training form in an engine."""

    @property
    def layers(self) -> list[Layer]:
        """Its layers."""

    @property
    def state(self) -> dict[str, Array]:
        """Its moving statistics by name."""

    @property
    def inputs(self) -> list[InputSpec]:
        """What it takes for the inputs that are fed."""

    @property
    def group_sizes(self) -> list[int]:
        """Sizes of the groups of replicas that share statistics; 0 stands for all."""

    @property
    def partial_totals(self) -> Sequence[int]:
        """Of each node, in graph order: the size of the group that its totals are of."""

    def open(self, communicator: Communicator, agreement: Mapping[str, Any]) -> FormSession:
        """Begin; all replicas call it together.

        Raises:
            ReplicaError: if they do not agree on the model or on `agreement`.
        """
