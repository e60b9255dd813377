"""The run that `replica_audit` judges; a module of its own, as it takes the engine to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from syncbn_convert.errors import UsageError, VerificationError
from syncbn_convert.runtime.communicator import Communicator
from syncbn_convert.runtime.replica_threads import on_threads
from syncbn_convert.runtime.session import LoadedForm, ReplicaSession
from syncbn_convert.verification.replica_audit import replica_audit_model, replicas_to_audit
from syncbn_convert.verification.tolerance import Array


def run_audited(model: Path, feeds: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
    """Run a training form on threads that take turns with the feeds.

    Returns:
        All outputs of each replica, totals included; nothing if its groups are too large to try.

    Raises:
        VerificationError: if the replicas would share no statistics.
    """
    try:
        form = LoadedForm(model, extend=replica_audit_model)
    except UsageError as error:
        raise VerificationError(str(error)) from error
    size = replicas_to_audit(form.group_sizes)

    def replica(communicator: Communicator) -> dict[str, Array]:
        result = ReplicaSession(form, communicator).step(feeds[communicator.rank % len(feeds)])
        totals = {f"total/{index}": total for index, total in enumerate(result.totals)}
        return {**result.outputs, **totals}

    return on_threads(size, replica) if size else []
