"""What replicas need of each other, and the trivial case of one replica."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from syncbn_convert.errors import ReplicaError
from syncbn_convert.options.replicas import DEFAULT_TIMEOUT

Float64 = npt.NDArray[np.float64]
Buffer = npt.NDArray[np.floating[Any]]


class Summing(Protocol):
    """What a group within the group can do."""

    def all_reduce_sum(self, values: Float64) -> Float64:
        """Return the sum over all replicas of a float64 vector; the argument is not changed."""


class Communicator(Summing, Protocol):
    """One replica's end of a group of replicas.

    Every method but `abort` is a collective: all replicas call it, in the same order. A collective
    that does not complete within the time limit, or whose partner failed, raises ReplicaError.
    """

    @property
    def rank(self) -> int:
        """Number of this replica, from 0."""

    @property
    def size(self) -> int:
        """Number of replicas."""

    @property
    def local_size(self) -> int:
        """Number of replicas on this machine."""

    @property
    def shares_memory(self) -> bool:
        """Whether the replicas are threads of one process, and get each other's objects."""

    def all_reduce_buffer(self, values: Buffer) -> Buffer:
        """Return the sum over all replicas of a contiguous vector of any length.

        Each element is added in the order of the ranks, so that the bits depend on nothing but the
        values and the number of replicas: not on the engine, nor on who comes first. The argument
        is not changed; the result may be shared between replicas, and is not to be changed either.
        """

    def all_gather(self, value: Any) -> list[Any]:
        """Return the picklable values of all replicas in the order of their ranks."""

    def broadcast(self, value: Any) -> Any:
        """Return the picklable value that replica 0 gave."""

    def barrier(self) -> None:
        """Wait until all replicas are here."""

    def split(self, group_size: int) -> Summing:
        """Return the group of consecutive ranks that this replica is in.

        Raises:
            ReplicaError: if `group_size` does not divide the number of replicas.
        """

    def abort(self, message: str) -> None:
        """Tell the other replicas that this one failed; they stop with its message."""

    def when_failed(self, stop: Callable[[str], None]) -> None:
        """Call `stop` with the message, in any thread, as soon as a replica here has failed."""

    def close(self) -> None:
        """Release what the engine holds."""


class LocalCommunicator:
    """A group of one.

    Args:
        timeout: As other engines have it; nobody is waited for.
    """

    def __init__(self, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        del timeout

    rank = 0
    size = 1
    local_size = 1
    shares_memory = True

    def all_reduce_sum(self, values: Float64) -> Float64:
        """Return a copy."""
        return values.copy()

    def all_reduce_buffer(self, values: Buffer) -> Buffer:
        """Return the vector itself."""
        return values

    def all_gather(self, value: Any) -> list[Any]:
        """Return the value alone."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """Return the value."""
        return value

    def barrier(self) -> None:
        """Return at once."""

    def split(self, group_size: int) -> LocalCommunicator:
        """Return itself."""
        check_group_size(group_size, self.size)
        return self

    def abort(self, message: str) -> None:
        """Do nothing: nobody waits."""

    def when_failed(self, stop: Callable[[str], None]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def shares(length: int, size: int) -> list[slice]:
    """Return the part of a vector that each of `size` replicas adds up."""
    bounds = [length * rank // size for rank in range(size + 1)]
    return [slice(*pair) for pair in itertools.pairwise(bounds)]


def sum_in_order(pieces: Sequence[Buffer], total: Buffer) -> None:
    """Add vectors one after the other into `total`."""
    np.copyto(total, pieces[0])
    for piece in pieces[1:]:
        total += piece


def check_group_size(group_size: int, size: int) -> None:
    """Refuse groups that would not come out even.

    Raises:
        ReplicaError: naming both numbers.
    """
    if size % group_size:
        raise ReplicaError(
            f"groups of {group_size} do not divide {size} replicas; run on a multiple of "
            f"{group_size}, or convert with another --group-size"
        )
