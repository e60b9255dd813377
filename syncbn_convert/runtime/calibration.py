"""Re-estimating moving statistics on data, on one or many replicas.

Precise statistics are those of the whole data set seen, batch by batch: with n, m and v the count,
mean and population variance of a global batch, mean = sum(n m) / sum(n) and
variance = sum(n (v + m^2)) / sum(n) - mean^2, all in float64. The sums are the totals that the
AllReduce of each node carries anyway.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from syncbn_convert.errors import ReplicaError
from syncbn_convert.form.stateful_layers import Layer
from syncbn_convert.options.calibrating import CalibrateOptions
from syncbn_convert.runtime.communicator import Communicator
from syncbn_convert.runtime.datasets import Dataset, checksum, global_batches
from syncbn_convert.runtime.runnable import FormSession, RunnableForm

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
ShowBatch = Callable[[int, int | None, int], None]
"""Called after each batch with batches done, batches in all (if known) and samples done."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """New statistics and what they were made of.

    Attributes:
        statistics: Moving means and variances by name, each [C], in the model's dtypes.
        batches: Number of global batches counted.
        samples: Number of samples counted.
        seconds: Wall time of the steps.
    """

    statistics: dict[str, Array]
    batches: int
    samples: int
    seconds: float


class PreciseStatistics:
    """Sums of each layer over batches, in float64."""

    def __init__(self, layers: list[Layer]) -> None:
        self._layers = layers
        self._sums = [np.zeros(2 * layer.channels + 1) for layer in layers]

    def add(self, totals: list[Float64]) -> None:
        """Add a step's totals; a layer called twice adds both calls."""
        for layer, sums in zip(self._layers, self._sums, strict=True):
            for call in layer.calls:
                sums += totals[call]

    def over_all_replicas(self, communicator: Communicator, group_sizes: Sequence[int]) -> None:
        """Add up the sums of the groups, where replicas share statistics within groups only.

        Args:
            communicator: This replica's end; all replicas call it together.
            group_sizes: Of each node, in graph order; 0 stands for all replicas.
        """
        for layer, sums in zip(self._layers, self._sums, strict=True):
            size = group_sizes[layer.calls[0]]
            if size not in (0, communicator.size):
                sums[:] = communicator.all_reduce_sum(sums / size)

    def result(self) -> dict[str, Float64]:
        """Return mean and variance of each layer by name; float64 [C].

        Raises:
            ReplicaError: if a layer saw no values.
        """
        statistics: dict[str, Float64] = {}
        for layer, sums in zip(self._layers, self._sums, strict=True):
            count = sums[0]
            if count <= layer.unbiased:
                raise ReplicaError(
                    f"node '{layer.name}' saw {count:g} values per channel, too few for a "
                    "variance; give more data or fewer warmup batches",
                    reporter=0,
                )
            mean = sums[1 : layer.channels + 1] / count
            second = sums[layer.channels + 1 :] / count
            var = np.maximum(second - mean * mean, 0.0) * (count / (count - layer.unbiased))
            statistics[layer.mean], statistics[layer.var] = mean, var
        return statistics


def calibrate_replica(
    form: RunnableForm,
    communicator: Communicator,
    dataset: Dataset,
    options: CalibrateOptions,
    progress: ShowBatch | None = None,
) -> Calibration:
    """Take part in a calibration as one replica; all replicas return the same statistics.

    Args:
        form: The training form.
        communicator: This replica's end of the group.
        dataset: All samples; the replica takes its piece of each global batch.
        options: How statistics are estimated.
        progress: Called after each batch.

    Raises:
        ReplicaError: if a replica fails, differs, or runs out of data before the others.
    """
    agreement: dict[str, Any] = {"data": dataset.size, "options": dataclasses.asdict(options)}
    if communicator.size > 1 and not communicator.shares_memory:
        agreement["samples (digest)"] = dataset.digest()
    session = form.open(communicator, agreement)
    expected = _expected_batches(dataset, options)
    counted, warming = PreciseStatistics(form.layers), PreciseStatistics(form.layers)
    done = samples = 0
    start = time.perf_counter()
    for number, batch in enumerate(_together(dataset, options, session)):
        totals = session.global_step(
            batch, update=options.method == "moving" and number >= options.warmup
        )
        if number < options.warmup:
            warming.add(totals)
            if number == options.warmup - 1:
                warming.over_all_replicas(communicator, form.partial_totals)
                session.load_state(_cast(warming.result(), form.state))
            continue
        counted.add(totals)
        done, samples = done + 1, samples + len(next(iter(batch.values())))
        if progress is not None:
            progress(done, expected, samples)
    if not done:
        raise ReplicaError(
            f"{dataset.name}: no batch was left to count after {options.warmup} warmup batches; "
            "give more data",
            reporter=0,
        )
    if options.method == "moving":
        found = session.state
    else:
        counted.over_all_replicas(communicator, form.partial_totals)
        found = _cast(counted.result(), form.state)
    return Calibration(found, done, samples, time.perf_counter() - start)


def _expected_batches(dataset: Dataset, options: CalibrateOptions) -> int | None:
    if dataset.size is None:
        return options.batches
    available = max(math.ceil(dataset.size / options.batch_size) - options.warmup, 0)
    return available if options.batches is None else min(available, options.batches)


def _together(
    dataset: Dataset, options: CalibrateOptions, session: FormSession
) -> Iterator[Mapping[str, Array]]:
    """Yield batches as long as every replica has one.

    Raises:
        ReplicaError: naming the replicas that ran out first.
    """
    communicator = session.communicator
    limit = None if options.batches is None else options.batches + options.warmup
    batches = global_batches(dataset, options.batch_size)
    done = 0
    while limit is None or done < limit:
        batch = next(batches, None)
        seen = np.zeros((2, communicator.size))
        if batch is not None:
            check = 0 if dataset.take is not None else checksum(batch)
            seen[:, communicator.rank] = 1.0, check
        present, checks = communicator.all_reduce_sum(seen.ravel()).reshape(seen.shape)
        if not present.any():
            return
        if not present.all():
            ranks = ", ".join(str(rank) for rank in np.flatnonzero(present == 0))
            raise ReplicaError(
                f"replica {ranks} ran out of data after {done} batches, the others did not; give "
                "all replicas the same data",
                reporter=0,
            )
        if (checks != checks[0]).any():
            ranks = ", ".join(str(rank) for rank in np.flatnonzero(checks != checks[0]))
            raise ReplicaError(
                f"replica {ranks} has other data than replica 0 in batch {done + 1}; give all "
                "replicas the same data",
                reporter=0,
            )
        assert batch is not None
        yield batch
        done += 1


def _cast(statistics: Mapping[str, Array], state: Mapping[str, Array]) -> dict[str, Array]:
    return {name: statistics[name].astype(state[name].dtype) for name in state}
