"""Running a model: ONNX Runtime, and onnx's evaluator for what that has no kernel for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from syncbn_convert.runtime.onnx_session import open_session
from syncbn_convert.verification.leaves import outputs_of, selected
from syncbn_convert.verification.tolerance import Array, Feeds

_THREADS = 2
_LONGEST_MESSAGE = 400


class RunnerError(Exception):
    """A runtime refuses a model or its inputs.

    Attributes:
        no_kernel: Whether the model is valid and an operator lacks an implementation.
    """

    def __init__(self, message: str, *, no_kernel: bool = False) -> None:
        super().__init__(message)
        self.no_kernel = no_kernel


class Runner(Protocol):
    """A loaded model."""

    def run(self, feeds: Feeds, outputs: Sequence[str]) -> dict[str, Array]:
        """Return the named values, of sequences and maps the tensors in them (see `leaves`).

        Raises:
            RunnerError: The runtime refuses the inputs.
        """


class OnnxRuntime:
    """A model in ONNX Runtime, on the CPU, with as many threads on every machine."""

    def __init__(
        self, model: Path | bytes, *, optimize: bool = True, folder: Path | None = None
    ) -> None:
        """Load a model.

        Args:
            model: File, or serialized model.
            optimize: Whether ONNX Runtime rewrites the graph.
            folder: Where a serialized model has its external data.

        Raises:
            RunnerError: ONNX Runtime refuses the model.
        """
        try:
            self._session = open_session(
                model,
                threads=_THREADS,
                optimize=optimize,
                spinning=False,
                log_errors=False,
                external_data=folder,
            )
            self._names = {output.name for output in self._session.get_outputs()}
        except Exception as error:
            _raise_if_memory_ran_out(error)
            no_kernel = "NOT_IMPLEMENTED" in str(error)
            raise RunnerError(one_line(error), no_kernel=no_kernel) from error

    def run(self, feeds: Feeds, outputs: Sequence[str]) -> dict[str, Array]:
        """Return the named values."""
        try:
            names = outputs_of(outputs, self._names)
            values = self._session.run(names, dict(feeds))
        except Exception as error:
            _raise_if_memory_ran_out(error)
            raise RunnerError(one_line(error)) from error
        return selected(dict(zip(names, values, strict=True)), outputs)


def _raise_if_memory_ran_out(error: Exception) -> None:
    """Turn what ONNX Runtime says where it gets no memory into what Python says.

    Raises:
        MemoryError: if it says so.
    """
    if any(words in str(error) for words in ("Failed to allocate memory", "bad_alloc")):
        raise MemoryError(str(error)) from error


class OnnxEvaluator:
    """A model in onnx's reference evaluator."""

    def __init__(self, model: Path | onnx.ModelProto) -> None:
        """Load a model.

        Raises:
            RunnerError: The evaluator refuses the model.
        """
        try:
            proto = model if isinstance(model, onnx.ModelProto) else onnx.load(model)
            self._evaluator = ReferenceEvaluator(proto)
        except Exception as error:
            raise RunnerError(one_line(error)) from error

    def run(self, feeds: Feeds, outputs: Sequence[str]) -> dict[str, Array]:
        """Return the named values."""
        try:
            names = outputs_of(outputs, self._evaluator.output_names)
            with np.errstate(all="ignore"):
                values = self._evaluator.run(names, dict(feeds))
        except Exception as error:
            raise RunnerError(one_line(error)) from error
        return selected(dict(zip(names, values, strict=True)), outputs)


def one_line(error: Exception) -> str:
    """Return the message of a runtime's error as one line of readable length."""
    text = " ".join(str(error).removeprefix("[ONNXRuntimeError] : ").split())
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 3] + "..."
