"""Data for training: in which order samples come, and who gets which."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from syncbn_convert.errors import ModelFileError, ReplicaError, UsageError
from syncbn_convert.runtime.datasets import Data, Dataset, global_batches, open_dataset, piece

Array = npt.NDArray[Any]

_ELEMENTS = {"tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(double)": np.float64}


@dataclasses.dataclass(frozen=True)
class Labels:
    """What the labels have to be.

    Attributes:
        name: Name of the array.
        dtype: Element type that the loss takes.
        rank: Number of axes; None if it is not known.
        classes: Number of classes; None if it is not known, or there are none.
    """

    name: str
    dtype: npt.DTypeLike
    rank: int | None
    classes: int | None

    def checked(self, samples: Mapping[str, Array], origin: str) -> dict[str, Array]:
        """Return samples with labels of the right type.

        Raises:
            ModelFileError: if the labels are not what the loss takes.
        """
        labels = samples[self.name]
        whole = np.issubdtype(self.dtype, np.integer)
        if whole and not np.issubdtype(labels.dtype, np.integer):
            raise ModelFileError(
                f"{origin}: labels '{self.name}' are {labels.dtype}, but this loss takes class "
                "indices, whole numbers; give those"
            )
        if self.rank is not None and labels.ndim != self.rank:
            raise ModelFileError(
                f"{origin}: labels '{self.name}' have shape {list(labels.shape)}, but this loss "
                f"takes {self.rank} axes; give them another shape"
            )
        if whole and labels.size:
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or (self.classes is not None and high >= self.classes):
                raise ModelFileError(
                    f"{origin}: labels '{self.name}' go from {low} to {high}, but the model has "
                    f"{self.classes or 'only nonnegative'} classes; give class indices from 0 up"
                )
        return {**samples, self.name: labels.astype(self.dtype, copy=False)}


def labels_of(
    session: onnxruntime.InferenceSession, name: str | None, classes: int | None
) -> Labels | None:
    """Return what the labels have to be by the graph that takes them."""
    found = next((value for value in session.get_inputs() if value.name == name), None)
    if name is None or found is None:
        return None
    rank = len(found.shape) if found.shape is not None else None
    return Labels(name, _ELEMENTS[found.type], rank, classes)


@dataclasses.dataclass(frozen=True)
class Micro:
    """One replica's piece of a micro-batch.

    Attributes:
        feeds: Arrays by name of input; they may be empty.
        count: Number of samples on all replicas.
    """

    feeds: dict[str, Array]
    count: int


class Samples:
    """Samples in the order of an epoch, dealt to replicas.

    Args:
        source: See `datasets.open_dataset`.
        inputs: Names of the arrays.
        labels: What the labels have to be.
        shuffle: Whether every epoch has an order of its own.

    Raises:
        UsageError: if samples that come one after the other should be shuffled.
    """

    def __init__(
        self, source: Data, inputs: Sequence[str], labels: Labels | None, *, shuffle: bool
    ) -> None:
        dataset = open_dataset(source, inputs)
        self.name = dataset.name
        self.size = dataset.size
        self._shuffle = shuffle
        self._labels = labels
        self._arrays: dict[str, Array] | None = None
        self._dataset = dataset
        if dataset.size is not None:
            self._arrays = self._all(dataset)
        elif shuffle:
            raise UsageError(
                f"data '{dataset.name}' is a function, whose samples come as it yields them; pass "
                "--no-shuffle and let the function shuffle, or give files"
            )

    def batches(self, batch_size: int) -> int | None:
        """Return the number of global batches in an epoch, if that is known."""
        return None if self.size is None else math.ceil(self.size / batch_size)

    def epoch(
        self, number: int, seed: int, batch_size: int, accumulate: int, replica: tuple[int, int]
    ) -> Iterator[list[Micro]]:
        """Yield the pieces of one replica, one list of micro-batches for each update.

        Args:
            number: Number of the epoch.
            seed: Of the order; the order is that of numpy's PCG64 with this seed and epoch.
            batch_size: Samples of an update, on all replicas.
            accumulate: Number of micro-batches of an update.
            replica: Rank and number of replicas.
        """
        rank, size = replica
        for batch in self._global(number, seed, batch_size):
            micros = [piece(batch, index, accumulate) for index in range(accumulate)]
            dealt = [
                Micro(self._gathered(piece(micro, rank, size)), count)
                for micro in micros
                if (count := len(next(iter(micro.values()))))
            ]
            yield dealt

    def _global(self, number: int, seed: int, batch_size: int) -> Iterator[dict[str, Array]]:
        """Yield global batches; those of arrays are only indices."""
        if self._arrays is None:
            for batch in global_batches(self._dataset, batch_size):
                yield self._checked(batch)
            return
        assert self.size is not None
        order = np.arange(self.size)
        if self._shuffle:
            order = np.random.default_rng([seed, number]).permutation(self.size)
        for start in range(0, self.size, batch_size):
            yield {_ORDER: order[start : start + batch_size]}

    def _gathered(self, samples: dict[str, Array]) -> dict[str, Array]:
        if self._arrays is None:
            return samples
        return {name: array[samples[_ORDER]] for name, array in self._arrays.items()}

    def _all(self, dataset: Dataset) -> dict[str, Array]:
        chunks = list(dataset.chunks())
        joined = (
            chunks[0]
            if len(chunks) == 1
            else {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
        )
        if not dataset.size:
            raise ModelFileError(f"{self.name}: holds no samples; give some")
        return self._checked(joined)

    def _checked(self, samples: dict[str, Array]) -> dict[str, Array]:
        return samples if self._labels is None else self._labels.checked(samples, self.name)


_ORDER = "\0order"


def check_any(done: int, name: str) -> None:
    """Refuse data of which no batch came.

    Raises:
        ReplicaError: naming it.
    """
    if not done:
        raise ReplicaError(f"{name}: yields no samples; give some", reporter=0)
