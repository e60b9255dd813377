"""What can go wrong on devices, as one line each."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import onnx_ir as ir

from syncbn_convert.errors import ReplicaError, UsageError, first_line
from syncbn_convert.runtime.communicator import Communicator
from syncbn_convert.xla import devices
from syncbn_convert.xla.dealing import Dealt

_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|[Oo]ut of memory")
_WANTED = re.compile(r"allocat\w*\s+(?:request for\s+)?([\d.]+\s?[KMGT]?i?B|\d+ bytes)")
_GIB = 1 << 30


def check_double(model: ir.Model, mesh: Any) -> None:
    """Refuse float64 weights on devices that have no float64.

    Raises:
        UsageError: naming one.
    """
    if devices.has_double(mesh):
        return
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.DOUBLE and len(tensor.shape):
            raise UsageError(
                f"initializer '{name}' is float64, which {devices.kind(mesh)} do not compute in; "
                "export the model in float32, or choose --platform cpu"
            )


@contextlib.contextmanager
def told(
    mesh: Any,
    samples: int,
    patience: contextlib.AbstractContextManager[None] = contextlib.nullcontext(),
) -> Iterator[None]:
    """Turn what XLA raises into one line.

    Args:
        mesh: The devices.
        samples: Of a device's piece.
        patience: What limits the time.

    Raises:
        ReplicaError: saying that memory ran out, or what else XLA says.
    """
    try:
        with patience:
            yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if not _OUT_OF_MEMORY.search(text):
            raise ReplicaError(
                f"XLA failed ({first_line(error)}); run on ONNX Runtime (--engine threads), or "
                "see -v"
            ) from error
        raise ReplicaError(
            out_of_memory(text, mesh.local_devices[0].memory_stats(), samples)
        ) from (error)


def out_of_memory(text: str, stats: Mapping[str, int] | None, samples: int) -> str:
    """Say that a batch is too large, and how much there is.

    Args:
        text: What XLA says.
        stats: Of the device's memory, in bytes; None where it keeps none.
        samples: Of a device's piece.
    """
    wanted = _WANTED.search(text)
    more = f"; XLA wanted {wanted[1]} more" if wanted else ""
    room = ""
    if stats and "bytes_limit" in stats:
        room = f" of {stats['bytes_limit'] / _GIB:.1f} GiB"
    return (
        f"the memory{room} of a device does not hold the step with {samples} samples on each"
        f"{more}; give a smaller --batch-size, or more devices"
    )


def fitting(samples: int, fixed: int, needed: int, limit: int) -> int:
    """Return how many samples fit on a device, if memory grows with them.

    Args:
        samples: That were tried.
        fixed: Bytes that no sample needs: weights, slots, statistics.
        needed: Bytes in all.
        limit: Bytes that the device has.
    """
    each = max(needed - fixed, 1) / max(samples, 1)
    return max(int((limit - fixed) / each), 0)


def check_fits(compiled: Any, mesh: Any, samples: int) -> None:
    """Refuse a compiled step that needs more memory than a device has.

    Raises:
        ReplicaError: saying how much it needs, and which batch would fit.
    """
    stats, analysis = mesh.local_devices[0].memory_stats(), compiled.memory_analysis()
    if not stats or "bytes_limit" not in stats or analysis is None:
        return
    fixed = analysis.argument_size_in_bytes
    needed = fixed + analysis.temp_size_in_bytes
    limit = stats["bytes_limit"]
    if needed > limit:
        fits = fitting(samples, fixed, needed, limit) * mesh.size
        raise ReplicaError(
            f"the step needs {needed / _GIB:.1f} GiB on each device, which has "
            f"{limit / _GIB:.1f} GiB; give a --batch-size of about {fits}, more devices, or "
            "--accumulate"
        )


def culprits(dealt: Dealt) -> str:
    """Say which devices' data is not finite, if this host's is not."""
    count = len(dealt.weights) // dealt.size
    bad = [
        str(device)
        for device in range(count)
        if not all(
            np.isfinite(array[device * dealt.size : (device + 1) * dealt.size]).all()
            for array in dealt.arrays.values()
            if np.issubdtype(array.dtype, np.floating)
        )
    ]
    return f", from replica {', '.join(bad)}" if bad else ""


def agree(communicator: Communicator, mine: Mapping[str, Any]) -> None:
    """Refuse hosts that are not alike.

    Raises:
        ReplicaError: naming what differs.
    """
    everyone = communicator.all_gather(dict(mine))
    for rank, theirs in enumerate(everyone):
        for name in {**everyone[0], **theirs}:
            if theirs.get(name) != everyone[0].get(name):
                raise ReplicaError(
                    f"host {rank} differs from host 0 in {name}; start all hosts alike",
                    reporter=0,
                )
