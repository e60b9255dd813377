"""Pieces of one size for all devices."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Dealt:
    """This host's share of a global batch, dealt to its devices.

    Attributes:
        arrays: By name; the pieces of the devices one after the other, all of one size.
        weights: 1 for each sample, 0 for padding, float32.
        padded: Whether there is padding, on any device of any host.
        size: Samples of a device's piece, padding included.
    """

    arrays: dict[str, Array]
    weights: Array
    padded: bool
    size: int


class Dealer:
    """Deals a host's share to its devices as `datasets.piece` deals to replicas.

    Args:
        mesh: The devices of all hosts.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._replicas = mesh.size
        own = jax.process_index()
        self._ranks = [
            rank for rank, device in enumerate(mesh.devices.flat) if device.process_index == own
        ]

    def deal(self, share: Mapping[str, Array], count: int, usual: int) -> Dealt:
        """Deal a share.

        Args:
            share: This host's samples by name.
            count: Samples of all hosts.
            usual: Samples that most batches have: an uneven batch is padded up to that.
        """
        bounds = [count * rank // self._replicas for rank in (*self._ranks, self._ranks[-1] + 1)]
        starts = [bound - bounds[0] for bound in bounds]
        padded = count % self._replicas != 0
        size = -(-count // self._replicas)
        if padded:
            size = max(size, -(-usual // self._replicas))
        rows = np.arange(size)
        places, weights = [], []
        for start, end in itertools.pairwise(starts):
            places.append(start + np.minimum(rows, max(end - start - 1, 0)))
            weights.append((rows < end - start).astype(np.float32))
        order = np.concatenate(places)
        whole = not padded
        arrays = {
            name: np.asarray(array) if whole else _picked(array, order)
            for name, array in share.items()
        }
        return Dealt(arrays, np.concatenate(weights), padded, size)


def _picked(array: Array, order: npt.NDArray[np.int64]) -> Array:
    """Return rows, padding as copies of real ones; where there are none, zeros."""
    if not len(array):
        return np.zeros((len(order), *array.shape[1:]), array.dtype)
    return array[np.minimum(order, len(array) - 1)]
