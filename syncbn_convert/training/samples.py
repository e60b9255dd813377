"""Data for training: in which order samples come, and who gets which."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from syncbn_convert.errors import ModelFileError, ReplicaError, UsageError
from syncbn_convert.options.training import EpochOptions
from syncbn_convert.runtime.datasets import (
    Data,
    ShuffleBuffer,
    checksum,
    global_batches,
    open_dataset,
    piece,
)
from syncbn_convert.runtime.fitting import InputSpec
from syncbn_convert.training.labels import Labels

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Micro:
    """One replica's piece of a micro-batch.

    Attributes:
        feeds: Arrays by name of input; they may be empty.
        count: Number of samples on all replicas.
        check: Checksum of the whole global batch; 0 where it follows from an order.
    """

    feeds: dict[str, Array]
    count: int
    check: int = 0


class Samples:
    """Samples in the order of an epoch, dealt to replicas.

    Args:
        source: See `datasets.open_dataset`.
        inputs: Names of the arrays, or what the model takes for them.
        labels: What the labels have to be.
        shuffle: Whether every pass has an order of its own.
        options: How an epoch is cut; None for all samples, once.

    Raises:
        UsageError: if samples that come one after the other should be shuffled without a buffer.
    """

    def __init__(
        self,
        source: Data,
        inputs: Sequence[str | InputSpec],
        labels: Labels | None,
        *,
        shuffle: bool,
        options: EpochOptions | None = None,
    ) -> None:
        dataset = open_dataset(source, inputs)
        self.name = dataset.name
        self.size = dataset.size
        self.notes = dataset.notes
        self._shuffle = shuffle
        self._options = options or EpochOptions()
        self._labels = labels
        self._dataset = dataset
        self._streams: dict[int, _Stream] = {}
        if dataset.size is not None:
            if not dataset.size:
                raise ModelFileError(f"{self.name}: holds no samples; give some")
            if labels is not None and dataset.column is not None:
                labels.check_all(dataset.column(labels.name), self.name)
            return
        if shuffle and self._options.shuffle_buffer is None:
            raise UsageError(
                f"data '{dataset.name}' is a function or iterable, whose samples come as it yields "
                "them; pass --shuffle-buffer N, or --no-shuffle and let it shuffle, or give files"
            )
        if dataset.endless and self._options.steps is None:
            raise UsageError(
                f"data '{dataset.name}' is an iterator, which no second epoch can begin anew; give "
                "what makes one, or pass --steps-per-epoch N"
            )

    def batches(self, batch_size: int) -> int | None:
        """Return the number of global batches in an epoch, if that is known."""
        if self._options.steps is not None:
            return self._options.steps
        return None if self.size is None else self._batches_of_a_pass(batch_size)

    def digest(self) -> str | None:
        """Return a digest of what the samples hold; None where they have to be run through."""
        return self._dataset.digest()

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
        for batch in self._global(number, seed, batch_size, rank):
            micros = [piece(batch, index, accumulate) for index in range(accumulate)]
            check = self._crc(batch)
            dealt = [
                Micro(self._gathered(piece(micro, rank, size)), count, check)
                for micro in micros
                if (count := len(next(iter(micro.values()))))
            ]
            yield dealt

    def part(
        self, number: int, seed: int, batch_size: int, accumulate: int, replica: tuple[int, int]
    ) -> Iterator[list[Micro]]:
        """Yield micro-batches of a replica whose samples are a part of all, and its own.

        The counts are those of the part; there are `accumulate` of each update, some maybe empty.
        After the last one, empty pieces follow without end, as other parts may be longer.
        """
        rank, size = replica
        own = batch_size * (rank + 1) // size - batch_size * rank // size
        if not own:
            raise UsageError(
                f"a batch of {batch_size} samples is less than one for each of {size} parts; give "
                "a larger --batch-size"
            )
        micros: list[Micro] = []
        for batch in self._global(number, seed, own, rank):
            pieces = [piece(batch, index, accumulate) for index in range(accumulate)]
            micros = [Micro(self._gathered(p), len(next(iter(p.values())))) for p in pieces]
            yield micros
        if not micros:
            raise ModelFileError(f"{self.name}: holds no samples; give some")
        empty = {name: array[:0] for name, array in micros[0].feeds.items()}
        while True:
            yield [Micro(empty, 0)] * accumulate

    def _batches_of_a_pass(self, batch_size: int) -> int:
        assert self.size is not None
        if not self._options.drop_last:
            return math.ceil(self.size / batch_size)
        if self.size < batch_size:
            raise UsageError(
                f"{self.name}: holds {self.size} samples, less than the batch of {batch_size} that "
                "--drop-last asks for; give a smaller --batch-size"
            )
        return self.size // batch_size

    def _global(
        self, number: int, seed: int, batch_size: int, rank: int
    ) -> Iterator[dict[str, Array]]:
        """Yield global batches; those of arrays are only indices."""
        if self.size is None:
            yield from self._of_stream(number, seed, batch_size, rank)
            return
        each = self._batches_of_a_pass(batch_size)
        steps = self._options.steps or each
        last, order = -1, np.arange(self.size)
        for index in range(number * steps, (number + 1) * steps):
            at, place = divmod(index, each)
            if at != last and self._shuffle:
                order = np.random.default_rng([seed, at]).permutation(self.size)
            last = at
            yield {_ORDER: order[place * batch_size : (place + 1) * batch_size]}

    def _of_stream(
        self, number: int, seed: int, batch_size: int, rank: int
    ) -> Iterator[dict[str, Array]]:
        steps = self._options.steps
        if steps is None:
            yield from self._pass_of_stream(number, seed, batch_size)
            return
        stream = self._streams.get(rank)
        if stream is None or stream.done > number * steps:
            stream = _Stream(self, seed, batch_size)
            self._streams[rank] = stream
        while stream.done < number * steps:
            next(stream)
        for _ in range(steps):
            yield next(stream)

    def _pass_of_stream(
        self, number: int, seed: int, batch_size: int
    ) -> Iterator[dict[str, Array]]:
        buffered = self._options.shuffle_buffer
        shuffled = None
        if self._shuffle and buffered is not None:
            shuffled = ShuffleBuffer(buffered, [seed, number])
        for batch in global_batches(self._dataset, batch_size, shuffled):
            if self._options.drop_last and len(next(iter(batch.values()))) < batch_size:
                return
            yield self._checked(batch)

    def _gathered(self, samples: dict[str, Array]) -> dict[str, Array]:
        if self._dataset.take is None:
            return samples
        return self._checked(self._dataset.take(samples[_ORDER]))

    def _crc(self, batch: Mapping[str, Array]) -> int:
        """Return a checksum of a batch that was run through; 0 of indices."""
        return 0 if self._dataset.take is not None else checksum(batch)

    def _checked(self, samples: dict[str, Array]) -> dict[str, Array]:
        return samples if self._labels is None else self._labels.checked(samples, self.name)


class _Stream:
    """Batches of a stream without end: when a pass is over, the next begins."""

    def __init__(self, samples: Samples, seed: int, batch_size: int) -> None:
        self.done = 0
        self._passes = 0
        self._of = samples, seed, batch_size
        self._batches = self._begin()

    def _begin(self) -> Iterator[dict[str, Array]]:
        samples, seed, batch_size = self._of
        return samples._pass_of_stream(self._passes, seed, batch_size)

    def __next__(self) -> dict[str, Array]:
        batch = next(self._batches, None)
        if batch is None:
            self._passes += 1
            self._batches = self._begin()
            batch = next(self._batches, None)
        if batch is None:
            raise UsageError(f"data '{self._of[0].name}' yields no samples (any more); give some")
        self.done += 1
        return batch


_ORDER = "\0order"


def check_any(done: int, name: str) -> None:
    """Refuse data of which no batch came.

    Raises:
        ReplicaError: naming it.
    """
    if not done:
        raise ReplicaError(f"{name}: yields no samples; give some", reporter=0)
