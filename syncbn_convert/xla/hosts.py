"""Hosts of the xla engine: one process each, with the devices that it has.

Arrays travel between devices, and XLA sees to that. What hosts say to one another beside goes
through host 0 on connections of their own. A second connection of each host is a lifeline: as long
as it lasts, the host lives. So the death of a host is known at once, also to one that waits in a
collective; it ends with a line.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import Any

import numpy as np

from syncbn_convert.errors import ReplicaError, UsageError, first_line
from syncbn_convert.options.replicas import DEFAULT_TIMEOUT, ReplicaOptions
from syncbn_convert.runtime.communicator import Buffer, Float64, Summing
from syncbn_convert.xla import devices
from syncbn_convert.xla.jax_extra import require_jax

_KEY_BYTES = 32
_NAME_BYTES = 256
_BYE = "bye"


class HostCommunicator:
    """One host's end of the group of hosts; alone where no other is named.

    Args:
        timeout: Seconds that a host waits for the others.
        options: Which devices and hosts.

    Raises:
        UsageError: if JAX is not installed, or has not the devices.
        ReplicaError: if the hosts do not meet.
    """

    shares_memory = False

    def __init__(
        self, *, timeout: float = DEFAULT_TIMEOUT, options: ReplicaOptions = ReplicaOptions()
    ) -> None:
        require_jax()
        devices.prepare(options)
        self._timeout = timeout
        place = _place(options, os.environ)
        self._meeting = None if place is None else _meet(place, timeout)
        self.mesh = devices.mesh(options)
        self.rank = devices.process_index()
        self.size = devices.process_count()
        self.local_size = self.mesh.size // self.size

    def all_reduce_sum(self, values: Float64) -> Float64:
        """Sum in the order of ranks."""
        total: Float64 = np.sum(self.all_gather(values), axis=0)
        return total

    def all_reduce_buffer(self, values: Buffer) -> Buffer:
        """Sum in the order of ranks; devices have better ways."""
        return functools.reduce(np.add, self.all_gather(values))

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all hosts."""
        return [value] if self._meeting is None else self._meeting.exchange(value)

    def broadcast(self, value: Any) -> Any:
        """Return host 0's value."""
        return self.all_gather(value if self.rank == 0 else None)[0]

    def barrier(self) -> None:
        """Wait until all hosts are here."""
        self.all_gather(None)

    def split(self, group_size: int) -> Summing:
        """Refuse: groups are groups of devices."""
        raise ReplicaError(f"hosts are not grouped ({group_size}); devices are")

    def abort(self, message: str) -> None:
        """End all hosts; there is no gentler way to reach one that waits in a collective."""
        if self._meeting is not None:
            self._meeting.end(message)

    def when_failed(self, stop: Callable[[str], None]) -> None:
        """Do nothing: a host that fails ends the others."""

    def close(self) -> None:
        """Do nothing: the hosts stay together until the process ends."""

    @contextlib.contextmanager
    def patience(self, what: str) -> Iterator[None]:
        """End all hosts with a line if what is done within takes longer than the time limit."""
        if self._meeting is None:
            yield
            return
        timer = threading.Timer(
            self._timeout,
            self._meeting.end,
            [
                f"host {self.rank} waited {self._timeout:g} s in {what} for the other hosts; raise "
                "--collective-timeout if one is only slow"
            ],
        )
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


class _Meeting:
    """The connections of a host: to host 0, or from it to all others."""

    def __init__(
        self, rank: int, talks: list[Connection], lifelines: list[Connection], timeout: float
    ) -> None:
        self._rank = rank
        self._talks = talks
        self._lifelines = lifelines
        self._timeout = timeout
        self._leaving = False
        threading.Thread(target=self._watch, daemon=True).start()
        atexit.register(self._leave)

    def exchange(self, value: Any) -> list[Any]:
        """Return what all hosts gave; they are in the order of their ranks."""
        try:
            if self._rank:
                self._talks[0].send(value)
                found: list[Any] = self._received(self._talks[0], 0)
                return found
            values = [value, *(self._received(talk, i + 1) for i, talk in enumerate(self._talks))]
            for talk in self._talks:
                talk.send(values)
            return values
        except (EOFError, OSError):
            self.end(f"host {self._rank} lost another host; see the output of the others")
            raise

    def _received(self, talk: Connection, other: int) -> Any:
        if not talk.poll(self._timeout):
            self.end(
                f"host {self._rank} waited {self._timeout:g} s for host {other}; raise "
                "--collective-timeout if it is only slow"
            )
        return talk.recv()

    def _watch(self) -> None:
        """End this process when another host dies, or says that all should end."""
        alive = dict(zip(self._lifelines, range(len(self._lifelines)), strict=True))
        while alive:
            for line in wait(list(alive)):
                assert isinstance(line, Connection)
                try:
                    message = line.recv()
                except (EOFError, OSError):
                    other = alive[line] + 1 if self._rank == 0 else 0
                    message = f"host {other} went away; see its output"
                if message == _BYE or self._leaving:
                    del alive[line]
                else:
                    self.end(message)

    def end(self, message: str) -> None:
        """Print a message, pass it on, and end this process."""
        self._leaving = True
        for line in self._lifelines:
            with contextlib.suppress(OSError, ValueError):
                line.send(message)
        sys.stderr.write(f"error: {message}\n")
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(1)

    def _leave(self) -> None:
        self._leaving = True
        for line in self._lifelines:
            with contextlib.suppress(OSError, ValueError):
                line.send(_BYE)


_Place = tuple[str | None, int, int, int | None]
"""Address of the coordinator (None: JAX finds it), number of hosts, this host's, and which of the
machine's devices it takes (None: all)."""


def _place(options: ReplicaOptions, environment: Mapping[str, str]) -> _Place | None:
    """Say where this host stands among others; None if it is alone."""
    own = options.accelerators
    if own.coordinator is not None:
        assert own.hosts is not None
        assert own.host_id is not None
        return (own.coordinator, own.hosts, own.host_id, None) if own.hosts > 1 else None
    if "TORCHELASTIC_RUN_ID" in environment:
        local = int(environment["LOCAL_RANK"]) if int(environment["LOCAL_WORLD_SIZE"]) > 1 else None
        address = f"{environment['MASTER_ADDR']}:{int(environment['MASTER_PORT']) + 1}"
        found = address, int(environment["WORLD_SIZE"]), int(environment["RANK"]), local
        return found if found[1] > 1 else None
    if "OMPI_COMM_WORLD_SIZE" in environment or "PMI_SIZE" in environment:
        return _place_of_mpi()
    if int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_ID" in environment:
        shared = int(environment.get("SLURM_NTASKS_PER_NODE", "1")) > 1
        local = int(environment["SLURM_LOCALID"]) if shared else None
        return None, int(environment["SLURM_NTASKS"]), int(environment["SLURM_PROCID"]), local
    return None


@functools.cache
def _place_of_mpi() -> _Place | None:
    try:
        from mpi4py import MPI as mpi  # noqa: N811
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            f"under mpirun the xla engine needs mpi4py ({error}): pip install "
            "'syncbn-convert[mpi]', or give --coordinator, --hosts and --host-id"
        ) from error
    world = mpi.COMM_WORLD
    machine = world.Split_type(mpi.COMM_TYPE_SHARED)
    alone = machine.Get_size() == world.Get_size()
    name = "127.0.0.1" if alone else socket.gethostname()
    address = world.bcast(f"{name}:{_free_port()}")
    local = machine.Get_rank() if machine.Get_size() > 1 else None
    place = address, world.Get_size(), world.Get_rank(), local
    return place if place[1] > 1 else None


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        port: int = found.getsockname()[1]
        return port


def _keep_standard_output() -> None:
    """Let what libraries print below Python go to stderr: results alone go to stdout."""
    try:
        if sys.stdout.fileno() != 1:
            return
    except (OSError, ValueError):  # no file
        return
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding)
    os.dup2(2, 1)


@functools.cache
def _meet(place: _Place, timeout: float) -> _Meeting:
    address, count, rank, local = place
    import jax

    _keep_standard_output()
    try:
        jax.distributed.initialize(
            coordinator_address=address,
            num_processes=count,
            process_id=rank,
            local_device_ids=None if local is None else [local],
            initialization_timeout=max(int(timeout), 1),
            shutdown_timeout_seconds=10,
        )
    except (RuntimeError, ValueError) as error:
        raise ReplicaError(
            f"host {rank} of {count}: the hosts do not meet at {address} ({first_line(error)}); "
            "check the address and that no other run uses the port"
        ) from error
    talks, lifelines = _connections(rank, count, address)
    return _Meeting(rank, talks, lifelines, timeout)


def _connections(
    rank: int, count: int, address: str | None
) -> tuple[list[Connection], list[Connection]]:
    """Return the connections to talk on and the lifelines, in the order of ranks."""
    from jax.experimental import multihost_utils

    listener, key = None, secrets.token_bytes(_KEY_BYTES)
    told = np.zeros(4 + _KEY_BYTES + _NAME_BYTES, np.uint8)
    if rank == 0:
        listener = Listener(("0.0.0.0", 0), backlog=2 * count, authkey=key)
        name = socket.gethostname().encode()[:_NAME_BYTES]
        port = int(listener.address[1]).to_bytes(4, "big")
        told[: 4 + _KEY_BYTES] = np.frombuffer(port + key, np.uint8)
        told[4 + _KEY_BYTES :][: len(name)] = np.frombuffer(name, np.uint8)
    said = bytes(np.asarray(multihost_utils.broadcast_one_to_all(told)).astype(np.uint8))
    if listener is not None:
        return _accepted(listener, count)
    place, key = int.from_bytes(said[:4], "big"), said[4 : 4 + _KEY_BYTES]
    name = said[4 + _KEY_BYTES :].rstrip(b"\0")
    own = socket.gethostname().encode()[:_NAME_BYTES]
    host = "127.0.0.1" if name == own else (address or name.decode()).rpartition(":")[0]
    found = []
    for purpose in ("talk", "lifeline"):
        connection = Client((host or name.decode(), place), authkey=key)
        connection.send((purpose, rank))
        found.append(connection)
    return [found[0]], [found[1]]


def _accepted(listener: Listener, count: int) -> tuple[list[Connection], list[Connection]]:
    found: dict[str, dict[int, Connection]] = {"talk": {}, "lifeline": {}}
    for _ in range(2 * (count - 1)):
        connection = listener.accept()
        purpose, rank = connection.recv()
        found[purpose][rank] = connection
    listener.close()
    ordered = [[lines[rank] for rank in sorted(lines)] for lines in found.values()]
    return ordered[0], ordered[1]
