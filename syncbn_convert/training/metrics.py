"""How many predictions are right."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.options.training import BINARY_CROSS_ENTROPY, SOFTMAX_CROSS_ENTROPY
from syncbn_convert.passes import add_loss

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Metric:
    """Accuracy.

    Attributes:
        output: Name of the output that is right or not.
        labels: Name of the labels.
        kind: `classes`: the largest along `axis` is the label; `binary`: above `threshold` is 1.
        axis: Axis of the classes.
        threshold: What separates 0 from 1.
        classes: Number of classes; None where it is not known or there are none.
    """

    output: str
    labels: str
    kind: Literal["classes", "binary"]
    axis: int = -1
    threshold: float = 0.5
    classes: int | None = None

    def right(self, output: Array, labels: Array) -> npt.NDArray[np.bool_]:
        """Return for each label whether it is predicted."""
        if self.kind == "classes":
            if not output.size:
                return np.zeros(labels.shape, bool)
            found: npt.NDArray[np.bool_] = output.argmax(axis=self.axis) == labels
            return found
        threshold: npt.NDArray[np.bool_] = (output > self.threshold) == (labels > 0.5)
        return threshold


def metric_of(form: ir.Model, loss: str, labels: str | None, output: str | None) -> Metric | None:
    """Return what a loss says of being right, or None."""
    if labels is None or loss not in (
        SOFTMAX_CROSS_ENTROPY,
        BINARY_CROSS_ENTROPY,
    ):
        return None
    compared = next(
        value for value in add_loss.comparable_outputs(form) if output in (None, value.name)
    )
    name = str(compared.name)
    if loss == BINARY_CROSS_ENTROPY:
        _, sigmoid = add_loss.logits_of(compared, "Sigmoid")
        return Metric(name, labels, "binary", threshold=0.5 if sigmoid is not None else 0.0)
    axis = -1
    for activation in ("Softmax", "LogSoftmax"):
        _, node = add_loss.logits_of(compared, activation)
        if node is not None:
            axis = node.attributes.get_int("axis", -1)
    size = compared.shape[axis] if compared.shape is not None else None
    return Metric(name, labels, "classes", axis, classes=size if isinstance(size, int) else None)
