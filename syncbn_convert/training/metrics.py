"""How many predictions are right."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.graph.value_types import infer_shapes_of
from syncbn_convert.options.training import BINARY_CROSS_ENTROPY, SOFTMAX_CROSS_ENTROPY
from syncbn_convert.passes import AddLoss, add_loss
from syncbn_convert.passes.losses import compared

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
        one_hot: Whether labels are shares of the classes.
        ignored: Class index of labels that do not count; None for none.
    """

    output: str
    labels: str
    kind: Literal["classes", "binary"]
    axis: int = -1
    threshold: float = 0.5
    classes: int | None = None
    one_hot: bool = False
    ignored: int | None = None

    def right(self, output: Array, labels: Array) -> npt.NDArray[np.bool_]:
        """Return for each label that counts whether it is predicted."""
        if self.kind == "classes":
            if self.one_hot:
                labels = labels.argmax(axis=self.axis) if labels.size else labels[..., 0]
            if not output.size:
                return np.zeros(labels.shape, bool)
            found: npt.NDArray[np.bool_] = output.argmax(axis=self.axis) == labels
            return found if self.ignored is None else found[labels != self.ignored]
        threshold: npt.NDArray[np.bool_] = (output > self.threshold) == (labels > 0.5)
        return threshold


def metric_of(form: ir.Model, adding: AddLoss) -> Metric | None:
    """Return what a loss says of being right, or None."""
    labels = adding.labels
    if labels is None or adding.loss not in (SOFTMAX_CROSS_ENTROPY, BINARY_CROSS_ENTROPY):
        return None
    output = next(
        value for value in add_loss.comparable_outputs(form) if adding.output in (None, value.name)
    )
    name = str(output.name)
    if adding.loss == BINARY_CROSS_ENTROPY:
        found = compared.activated(output, "Sigmoid")
        return Metric(name, labels, "binary", threshold=0.5 if found.node is not None else 0.0)
    infer_shapes_of(form, [output])
    axis = compared.class_axis_of(output, adding.labelling)
    size = output.shape[axis] if output.shape is not None else None
    return Metric(
        name,
        labels,
        "classes",
        axis,
        classes=size if isinstance(size, int) else None,
        one_hot=adding.one_hot,
        ignored=adding.ignore_index,
    )
