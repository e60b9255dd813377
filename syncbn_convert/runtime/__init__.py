"""Running the training form on replicas."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syncbn_convert.runtime.communicator import Communicator, LocalCommunicator
    from syncbn_convert.runtime.engines import engine_in_use, open_communicator
    from syncbn_convert.runtime.replica_threads import run_replicas
    from syncbn_convert.runtime.session import ReplicaSession

__all__ = [
    "Communicator",
    "LocalCommunicator",
    "ReplicaSession",
    "engine_in_use",
    "open_communicator",
    "run_replicas",
]

_HOME_OF = {
    "Communicator": "communicator",
    "LocalCommunicator": "communicator",
    "ReplicaSession": "session",
    "engine_in_use": "engines",
    "open_communicator": "engines",
    "run_replicas": "replica_threads",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: who only opens ONNX Runtime loads nothing else."""
    if name not in _HOME_OF:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
