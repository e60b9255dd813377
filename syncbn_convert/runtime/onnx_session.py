"""The one place that opens ONNX Runtime.

It imports nothing else of the package: verification's child process starts with it.
"""

from __future__ import annotations

import os
from pathlib import Path

import onnxruntime

_ERRORS = 3
_FATAL_ONLY = 4


def open_session(
    model: Path | bytes,
    *,
    threads: int,
    custom_operators: str | None = None,
    optimize: bool = True,
    spinning: bool = True,
    log_errors: bool = True,
    external_data: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Load a model on the CPU.

    Args:
        model: File, or serialized model.
        threads: Intra-op threads of one run.
        custom_operators: Library of operators that the model calls; None if there are none.
        optimize: Whether ONNX Runtime rewrites the graph.
        spinning: Whether threads without work wait busily.
        log_errors: Whether errors go to stderr too, beside the exception.
        external_data: Folder where a serialized model has its external data.

    Returns:
        The session.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS if log_errors else _FATAL_ONLY
    options.intra_op_num_threads = threads
    if custom_operators is not None:
        options.register_custom_ops_library(custom_operators)
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if external_data is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(external_data.resolve())
        )
    source = model if isinstance(model, bytes) else os.fspath(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
