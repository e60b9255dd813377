"""Running gradient graphs on thread replicas, each with a model or a piece of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime

from syncbn_convert.runtime.all_reduce_operator import CollectiveStep, collectives, library_path
from syncbn_convert.runtime.communicator import Communicator
from syncbn_convert.runtime.replica_threads import on_threads

Array = npt.NDArray[Any]


def run_together(
    models: Sequence[onnx.ModelProto],
    feeds: Sequence[Mapping[str, Array]],
    group_sizes: Sequence[int] = (0,),
) -> list[dict[str, Array]]:
    """Run one model a replica, all at once; return each one's outputs by name."""

    opened = {id(model): _open(model) for model in models}

    def replica(communicator: Communicator) -> dict[str, Array]:
        session = opened[id(models[communicator.rank])]
        groups = {size: communicator.split(size) if size else communicator for size in group_sizes}
        step = CollectiveStep(groups)
        with collectives(step):
            results = session.run(None, dict(feeds[communicator.rank]))
        if step.error is not None:
            raise step.error
        return dict(zip((value.name for value in session.get_outputs()), results, strict=True))

    return on_threads(len(models), replica)


def _open(model: onnx.ModelProto) -> Any:
    """Load a model; not from several threads at once, which onnxruntime-extensions cannot bear."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(library_path())
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
