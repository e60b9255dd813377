"""Loss and accuracy of the inference form, on replicas."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

from syncbn_convert.files import model_file
from syncbn_convert.form import opset
from syncbn_convert.graph import graphs
from syncbn_convert.passes import (
    FoldMovingStatistics,
    SwitchRandomnessOff,
    add_loss,
)
from syncbn_convert.passes.gradients.gradient_tape import MIN_OPSET
from syncbn_convert.rewriting import pipeline
from syncbn_convert.runtime.all_reduce_operator import CollectiveStep, collectives
from syncbn_convert.runtime.communicator import Communicator
from syncbn_convert.runtime.session import open_model
from syncbn_convert.training.samples import Samples, check_any
from syncbn_convert.training.step_models import StepModels

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What the inference form makes of data.

    Attributes:
        loss: Mean over the samples, without the regularization loss.
        accuracy: Share of right predictions; None where the loss does not tell.
        samples: Number of samples.
    """

    loss: float
    accuracy: float | None
    samples: int


def raised(model: ir.Model) -> ir.Model:
    """Return a model in an opset that losses are written in, in place."""
    if graphs.opset_version(model) < MIN_OPSET:
        opset.raise_opset(model, MIN_OPSET)
    return model


def with_weights(form: ir.Model, arrays: Mapping[str, Array]) -> ir.Model:
    """Return a copy of the form with other initializers."""
    model = model_file.as_model(form)
    for name, array in arrays.items():
        value = model.graph.initializers[name]
        old = value.const_value
        assert old is not None
        value.const_value = ir.tensor(np.array(array), name=name, dtype=old.dtype)
    return model


class Evaluator:
    """Folds the form as it stands and runs it on data.

    Args:
        models: The graphs of the step.
        samples: The data.
        batch_size: Samples of a batch, over all replicas.
        threads: Intra-op threads of one replica.
    """

    def __init__(self, models: StepModels, samples: Samples, batch_size: int, threads: int) -> None:
        self._models = models
        self.samples = samples
        self._batch_size = batch_size
        self._threads = threads

    def evaluate(self, communicator: Communicator, arrays: Mapping[str, Array]) -> Evaluation:
        """Evaluate the form with these parameters and statistics; all replicas call it together."""
        session = self._session(communicator, arrays)
        metric = self._models.metric
        names = [self._models.loss, *([metric.output] if metric else [])]
        rank, size = communicator.rank, communicator.size
        loss = samples = 0.0
        hits = np.zeros(2)
        for (micro,) in self.samples.epoch(0, 0, self._batch_size, 1, (rank, size)):
            step = CollectiveStep({0: communicator})
            with collectives(step):
                results = session.run(names, micro.feeds)
            if step.error is not None:
                raise step.error
            loss += float(results[0]) * micro.count
            samples += micro.count
            if metric is not None:
                right = metric.right(results[1], micro.feeds[metric.labels])
                hits += right.sum(), right.size
        check_any(int(samples), self.samples.name)
        hits = communicator.all_reduce_sum(hits)
        accuracy = float(hits[0] / hits[1]) if metric is not None else None
        return Evaluation(loss / samples, accuracy, int(samples))

    def _session(
        self, communicator: Communicator, arrays: Mapping[str, Array]
    ) -> onnxruntime.InferenceSession:
        """Replicas that share memory share the session."""
        session = None
        if communicator.rank == 0 or not communicator.shares_memory:
            session = self._open(arrays, alone=communicator.size == 1)
        if communicator.shares_memory:
            session = communicator.broadcast(session)
        assert session is not None
        return session

    def _open(self, arrays: Mapping[str, Array], *, alone: bool) -> onnxruntime.InferenceSession:
        model = raised(with_weights(self._models.form, arrays))
        adding = dataclasses.replace(self._models.adding_loss, weights=None)
        pipeline.run(model, [SwitchRandomnessOff(), FoldMovingStatistics(), adding])
        loss = add_loss.output_of(model)
        assert loss is not None
        loss.name = self._models.loss
        return open_model(model, "inference", self._threads, alone=alone)
