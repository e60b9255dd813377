"""What the training loop needs of an engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy.typing as npt

from syncbn_convert.runtime.communicator import Communicator
from syncbn_convert.runtime.fitting import InputSpec
from syncbn_convert.training.evaluation import Evaluation
from syncbn_convert.training.replica import RatedBatch, StepOutcome
from syncbn_convert.training.samples import Samples
from syncbn_convert.training.step_models import StepModels

Array = npt.NDArray[Any]


class Evaluating(Protocol):
    """Evaluates the inference form."""

    @property
    def samples(self) -> Samples:
        """The data."""

    def evaluate(self, communicator: Communicator, arrays: Mapping[str, Array]) -> Evaluation:
        """Evaluate the form with these parameters and statistics; all call it together."""


class Replica(Protocol):
    """State, and steps that change it."""

    @property
    def updates(self) -> int:
        """Updates done."""

    @property
    def parameters(self) -> dict[str, Array]:
        """The trained parameters by name."""

    @property
    def slots(self) -> dict[str, Array]:
        """The optimizer's slots by name."""

    @property
    def statistics(self) -> dict[str, Array]:
        """The moving statistics by name."""

    def load(
        self,
        parameters: Mapping[str, Array],
        slots: Mapping[str, Array],
        statistics: Mapping[str, Array],
        updates: int = 0,
    ) -> None:
        """Begin from copies of this state."""

    def steps(self, batches: Iterator[RatedBatch]) -> Iterator[StepOutcome]:
        """Update once for each batch; when the last outcome is yielded, the state is whole.

        Raises:
            ReplicaError: if a replica fails, or loss or statistics are not finite.
        """


class Step(Protocol):
    """The graphs of a step in an engine."""

    @property
    def models(self) -> StepModels:
        """The graphs."""

    @property
    def digest(self) -> str:
        """Of the gradient graph."""

    @property
    def inputs(self) -> list[InputSpec]:
        """What it takes for the inputs that data is fed to."""

    @property
    def draws_again(self) -> bool:
        """Whether a resumed run draws the random numbers that the whole run would have drawn."""

    @property
    def notes(self) -> list[str]:
        """What a user should know of a run that is done."""

    def replica(
        self, communicator: Communicator, agreement: Mapping[str, Any], usual: int
    ) -> Replica:
        """Begin; all call it together.

        Args:
            communicator: This one's end of the group.
            agreement: Facts that must be the same on all, by name.
            usual: Samples of most micro-batches, over all replicas.

        Raises:
            ReplicaError: if they do not agree.
        """

    def evaluator(self, samples: Samples, batch_size: int) -> Evaluating:
        """Return what evaluates the inference form on data."""
