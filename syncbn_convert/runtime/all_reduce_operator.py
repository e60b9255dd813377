"""`syncbn::AllReduce` as an operator of ONNX Runtime, through onnxruntime-extensions.

The operator is registered once for the process. Which communicator it uses is a matter of the
thread that calls `InferenceSession.run`: ONNX Runtime runs the operators of a sequential session
there. Nothing may be raised inside the operator, as that ends the process; so the first error is
kept, later calls return at once, and the caller raises after `run`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime_extensions as extensions

Float64 = npt.NDArray[np.float64]


class Summing(Protocol):
    """What the operator needs of a communicator."""

    def all_reduce_sum(self, values: Float64) -> Float64:
        """Return the sum over all replicas."""


class Step:
    """The collectives of one run of one replica.

    Attributes:
        calls: Number of AllReduce calls so far.
        first_bad_payload: Index of the first call whose own payload was not finite, or -1.
        totals_are_finite: Whether every sum so far was finite.
        error: What a collective raised; None if nothing.
    """

    def __init__(self, groups: dict[int, Summing]) -> None:
        self.calls = 0
        self.first_bad_payload = -1
        self.totals_are_finite = True
        self.error: Exception | None = None
        self._groups = groups

    def all_reduce(self, payload: Float64, group_size: int) -> Float64:
        """Sum `payload` over the replicas; never raise."""
        index, self.calls = self.calls, self.calls + 1
        if self.error is not None:
            return payload
        try:
            total = self._groups[group_size].all_reduce_sum(payload)
        except Exception as error:
            self.error = error
            return payload
        if self.totals_are_finite and not np.isfinite(total.sum()):
            self.totals_are_finite = False
        if self.first_bad_payload < 0 and not np.isfinite(payload.sum()):
            self.first_bad_payload = index
        return total


_current = threading.local()


@contextmanager
def collectives(step: Step) -> Iterator[None]:
    """Let AllReduce calls of this thread go to `step`."""
    _current.step = step
    try:
        yield
    finally:
        _current.step = None


@functools.cache
def library_path() -> str:
    """Register the operator, once, and return the library that a session has to load."""
    extensions.onnx_op(
        op_type="syncbn::AllReduce",
        inputs=[extensions.PyCustomOpDef.dt_double],
        outputs=[extensions.PyCustomOpDef.dt_double],
        attrs={"group_size": extensions.PyCustomOpDef.dt_int64},
    )(_all_reduce)
    path: str = extensions.get_library_path()
    return path


def _all_reduce(payload: Float64, group_size: int = 0, **_: Any) -> Float64:
    step: Step | None = getattr(_current, "step", None)
    return payload if step is None else step.all_reduce(payload, group_size)
