"""Replicas as torch.distributed processes; `torchrun` starts them."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from syncbn_convert.errors import ReplicaError, UsageError, first_line
from syncbn_convert.options.replicas import DEFAULT_TIMEOUT
from syncbn_convert.runtime.arrivals import OTHERS
from syncbn_convert.runtime.communicator import (
    Buffer,
    Float64,
    check_group_size,
)
from syncbn_convert.runtime.deadline import ended_after

_MOST_DIGITS = 10
_FAILURE_KEY = "syncbn_convert/failure"
_WAITING_KEY = "syncbn_convert/waiting"
_PATIENCE_FOR_OTHERS = 0.5
"""Seconds that others may give up later than this replica."""
_PATIENCE_FOR_A_MESSAGE = 1.0
"""Seconds to wait for the message of a replica whose connection broke."""


class TorchCommunicator:
    """One process's end of the torch.distributed process group.

    A group that is there already is used as it is; otherwise one is made, which lasts until the
    process ends.

    Args:
        backend: `gloo` or `nccl`; None takes nccl where CUDA is there for every local replica.
        timeout: Seconds that a replica waits in one collective.

    Raises:
        UsageError: if torch is not installed, or torchrun's environment is missing.
        ReplicaError: if the replicas do not meet.
    """

    shares_memory = False

    def __init__(self, backend: str | None = None, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._torch = _import_torch()
        self._dist = self._torch.distributed
        self.local_size = _number("LOCAL_WORLD_SIZE", 1)
        self._timeout = timeout
        if not self._dist.is_initialized():
            self._start(backend or self._suitable_backend())
        self._backend = self._dist.get_backend()
        self.rank = self._dist.get_rank()
        self.size = self._dist.get_world_size()
        self._device = (
            f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if self._backend == "nccl" else "cpu"
        )
        self._groups: dict[int, _TorchGroup] = {}

    def all_reduce_sum(self, values: Float64) -> Float64:
        """Sum in float64, on the GPU where the backend is nccl."""
        return self._sum(values, None)

    def all_reduce_buffer(self, values: Buffer) -> Buffer:
        """Send each share of the vector to the replica that adds it up, and the sums to all.

        The backend's own reduction may add in any order.
        """
        torch, dist = self._torch, self._dist
        own = -(-len(values) // self.size)
        sent = torch.zeros(own * self.size, dtype=_torch_dtype(torch, values))
        sent[: len(values)] = torch.from_numpy(values)
        sent = sent.to(self._device)
        pieces = torch.empty_like(sent)
        self._guard(lambda: dist.all_to_all_single(pieces, sent))
        mine, *others = pieces.view(self.size, own).unbind()
        for piece in others:
            mine += piece
        self._guard(lambda: dist.all_gather_into_tensor(sent, mine))
        total: Buffer = sent.cpu().numpy()[: len(values)]
        return total

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all replicas."""
        values: list[Any] = [None] * self.size
        self._guard(lambda: self._dist.all_gather_object(values, value))
        return values

    def broadcast(self, value: Any) -> Any:
        """Return replica 0's value."""
        values = [value]
        self._guard(lambda: self._dist.broadcast_object_list(values, src=0))
        return values[0]

    def barrier(self) -> None:
        """Wait until all replicas are here."""
        self._guard(self._dist.barrier)

    def split(self, group_size: int) -> _TorchGroup:
        """Return this replica's end of its group of consecutive ranks."""
        check_group_size(group_size, self.size)
        if group_size not in self._groups:
            group, _ = self._dist.new_subgroups(group_size)
            self._groups[group_size] = _TorchGroup(self, group, group_size)
        return self._groups[group_size]

    def abort(self, message: str) -> None:
        """Leave the message where the others find it when their connection breaks."""
        if self._dist.is_initialized():
            store = self._dist.distributed_c10d._get_default_store()
            store.set(_FAILURE_KEY, json.dumps([self.rank, message]))
            self._leave()

    def when_failed(self, stop: Callable[[str], None]) -> None:
        """Do nothing: other replicas are other processes."""

    def close(self) -> None:
        """Do nothing: the process group serves the next run too."""

    def _start(self, backend: str) -> None:
        """Make the process group; a gloo process that ends inside it aborts."""
        try:
            with self._limited("to start"):
                self._dist.init_process_group(
                    backend, timeout=datetime.timedelta(seconds=self._timeout)
                )
        except (RuntimeError, ValueError) as error:
            raise ReplicaError(
                f"replica {os.environ['RANK']}: torch.distributed cannot start "
                f"({first_line(error)}): check MASTER_ADDR, "
                "MASTER_PORT and GLOO_SOCKET_IFNAME, and that no other run uses the port"
            ) from error
        atexit.register(self._leave)

    def _leave(self) -> None:
        if self._dist.is_initialized():
            with self._limited("to end"):
                self._dist.destroy_process_group()

    def _limited(self, purpose: str) -> contextlib.AbstractContextManager[None]:
        """Bound what the backend's own limit does not; that has the first word."""
        return ended_after(
            self._timeout + _PATIENCE_FOR_A_MESSAGE,
            f"replica {os.environ.get('RANK', '0')} waited {self._timeout:g} s for {OTHERS} "
            f"{purpose}; look at what became of them, or raise --collective-timeout",
        )

    def _sum(self, values: Float64, group: Any) -> Float64:
        tensor = self._torch.from_numpy(values.copy()).to(self._device)
        self._guard(lambda: self._dist.all_reduce(tensor, group=group))
        total: Float64 = tensor.cpu().numpy()
        return total

    def _guard(self, collective: Any) -> None:
        try:
            collective()
        except RuntimeError as error:
            raise self._failure() or self._broken(error) from error

    def _failure(self) -> ReplicaError | None:
        """Return what another replica left in the store, if it did."""
        store = self._dist.distributed_c10d._get_default_store()
        try:
            store.wait([_FAILURE_KEY], datetime.timedelta(seconds=_PATIENCE_FOR_A_MESSAGE))
            rank, message = json.loads(store.get(_FAILURE_KEY))
        except RuntimeError:
            return None
        return ReplicaError(message, reporter=rank)

    def _broken(self, error: RuntimeError) -> ReplicaError:
        if "Timed out" in str(error):
            return ReplicaError(
                f"replica {self.rank} waited {self._timeout:g} s in a collective for "
                f"{self._late()}; raise --collective-timeout if one is only slow"
            )
        return ReplicaError(
            f"replica {self.rank} lost another replica ({first_line(error)}); see the output of "
            "the others"
        )

    def _late(self) -> str:
        """Return the replicas that do not wait themselves, as each that does tells the others."""
        store = self._dist.distributed_c10d._get_default_store()
        try:
            store.set(f"{_WAITING_KEY}/{self.rank}", "")
            time.sleep(_PATIENCE_FOR_OTHERS)
            late = [rank for rank in range(self.size) if not self._waits(store, rank)]
        except RuntimeError:
            return OTHERS
        return f"replica {', '.join(map(str, late))}" if late else OTHERS

    @staticmethod
    def _waits(store: Any, rank: int) -> bool:
        return bool(store.check([f"{_WAITING_KEY}/{rank}"]))

    def _suitable_backend(self) -> str:
        cuda = self._torch.cuda
        enough = cuda.is_available() and cuda.device_count() >= self.local_size
        return "nccl" if enough and self._dist.is_nccl_available() else "gloo"


class _TorchGroup:
    """A group of consecutive ranks; only sums go through it."""

    def __init__(self, world: TorchCommunicator, group: Any, size: int) -> None:
        self.rank = world.rank % size
        self.size = size
        self.local_size = min(size, world.local_size)
        self._world = world
        self._group = group

    def all_reduce_sum(self, values: Float64) -> Float64:
        """Sum over the group."""
        return self._world._sum(values, self._group)


def _import_torch() -> Any:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        import torch
        import torch.distributed
    except ImportError as error:
        raise UsageError(
            f"the torch engine needs torch ({error}): pip install 'syncbn-convert[torch]'"
        ) from error
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR") if name not in os.environ]
    if missing:
        raise UsageError(
            f"the torch engine needs the environment of torchrun ({', '.join(missing)} missing): "
            "start with 'torchrun --nproc-per-node N --no-python syncbn-convert …'"
        )
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        _number(name, 0)
    return torch


def _number(variable: str, default: int) -> int:
    """Return what an environment variable says.

    Raises:
        UsageError: if it is no number.
    """
    text = os.environ.get(variable, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < _MOST_DIGITS):
        raise UsageError(
            f"the torch engine needs the environment of torchrun, where {variable} is a number, "
            f"not '{text}': start with 'torchrun --nproc-per-node N --no-python syncbn-convert …'"
        )
    return int(text)


def _torch_dtype(torch: Any, values: Buffer) -> Any:
    return torch.float64 if values.dtype == np.float64 else torch.float32
