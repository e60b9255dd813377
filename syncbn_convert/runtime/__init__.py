"""Running the training form on replicas."""

from __future__ import annotations

from syncbn_convert.runtime.communicator import Communicator, LocalCommunicator
from syncbn_convert.runtime.engines import engine_in_use, open_communicator
from syncbn_convert.runtime.replicas import run_replicas
from syncbn_convert.runtime.session import ReplicaSession

__all__ = [
    "Communicator",
    "LocalCommunicator",
    "ReplicaSession",
    "engine_in_use",
    "open_communicator",
    "run_replicas",
]
