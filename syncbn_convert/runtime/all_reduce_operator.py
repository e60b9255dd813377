"""`syncbn::AllReduce` as an operator of ONNX Runtime, through onnxruntime-extensions.

The operator is registered once for the process. Which communicator it uses is a matter of the
thread that calls `InferenceSession.run`: ONNX Runtime runs the operators of a sequential session
there. Nothing may be raised inside the operator, as that ends the process; so the first error is
kept, later calls return at once, and the caller raises after `run`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from syncbn_convert.runtime.communicator import Float64, Summing


class CollectiveStep:
    """The collectives of one run of one replica.

    Attributes:
        payloads: What this replica gave to each AllReduce call so far.
        error: What a collective raised; None if nothing.
    """

    def __init__(self, groups: Mapping[int, Summing]) -> None:
        self.payloads: list[Float64] = []
        self.error: BaseException | None = None
        self._groups = groups

    def all_reduce(self, payload: Float64, group_size: int) -> Float64:
        """Sum `payload` over the replicas; never raise."""
        if self.error is not None:
            return payload
        self.payloads.append(payload)
        try:
            return self._groups[group_size].all_reduce_sum(payload)
        except BaseException as error:
            self.error = error
            return payload


_current = threading.local()


@contextmanager
def collectives(step: CollectiveStep) -> Iterator[None]:
    """Let AllReduce calls of this thread go to `step`."""
    _current.step = step
    try:
        yield
    finally:
        _current.step = None


@functools.cache
def library_path() -> str:
    """Register the operator, once, and return the library that a session has to load.

    onnxruntime-extensions is imported here, as it takes seconds where torch is installed.
    """
    import onnxruntime_extensions as extensions

    extensions.onnx_op(
        op_type="syncbn::AllReduce",
        inputs=[extensions.PyCustomOpDef.dt_double],
        outputs=[extensions.PyCustomOpDef.dt_double],
        attrs={"group_size": extensions.PyCustomOpDef.dt_int64},
    )(_all_reduce)
    path: str = extensions.get_library_path()
    return path


def _all_reduce(payload: Float64, group_size: int = 0, **_: Any) -> Float64:
    step: CollectiveStep | None = getattr(_current, "step", None)
    return payload if step is None else step.all_reduce(payload, group_size)
