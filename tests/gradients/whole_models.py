"""Gradients of whole models: the graph to test, and what its gradients are held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper

import syncbn_convert
from syncbn_convert import ConvertOptions, model_file
from syncbn_convert.passes import Differentiate
from syncbn_convert.rewriting import RewriteResult
from tests.gradients import torch_oracle
from tests.gradients.replicas import run_together

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Feeds = Mapping[str, Array]

DIRECTION = "direction"
LOSS = "loss"


def training_form(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model's training form with a loss: the sum over all replicas of output * direction."""
    opset = max(18, next(entry.version for entry in model.opset_import if not entry.domain))
    form = syncbn_convert.convert(model, ConvertOptions(opset=opset), verify=False)
    assert isinstance(form, onnx.ModelProto)
    output = form.graph.output[0]
    rank = len(output.type.tensor_type.shape.dim)
    form.graph.input.append(
        helper.make_tensor_value_info(DIRECTION, TensorProto.FLOAT, [None] * rank)
    )
    form.graph.node.extend(
        [
            helper.make_node("Mul", [output.name, DIRECTION], ["loss/product"]),
            helper.make_node("ReduceSum", ["loss/product"], ["loss/local"], keepdims=0),
            helper.make_node("Cast", ["loss/local"], ["loss/wide"], to=TensorProto.DOUBLE),
            helper.make_node(
                "AllReduce", ["loss/wide"], ["loss/total"], domain="syncbn", group_size=0
            ),
            helper.make_node("Cast", ["loss/total"], [LOSS], to=TensorProto.FLOAT),
        ]
    )
    form.graph.output.append(helper.make_tensor_value_info(LOSS, TensorProto.FLOAT, []))
    return form


def differentiated(form: onnx.ModelProto, loss: str = LOSS) -> tuple[onnx.ModelProto, list[str]]:
    """The form with its gradients, and the names of the parameters."""
    subject = model_file.as_model(form)
    result = Differentiate(loss=loss)(subject)
    assert isinstance(result, RewriteResult)
    assert result.modified
    proto = model_file.to_proto(subject)
    names = [record.node for record in result.records if record.action == "differentiated"]
    return proto, names


def summed_gradients(
    model: onnx.ModelProto, names: Sequence[str], pieces: Sequence[Feeds]
) -> dict[str, Float64]:
    """Run one step on as many replicas as there are pieces; sum each gradient over them."""
    results = run_together([model] * len(pieces), pieces)
    return {
        name: np.sum([result[f"{name}.grad"].astype(np.float64) for result in results], axis=0)
        for name in names
    }


def require_gradients(
    form: onnx.ModelProto, got: Mapping[str, Float64], union: Feeds, *, slack: float = 8.0
) -> None:
    """Hold gradients to torch's float64 ones, within `slack` times what float32 loses there.

    What torch itself loses in float32 is the yardstick, over all parameters together relative to
    their largest element, as a single small gradient may happen to be exact.
    """
    exact = torch_oracle.gradients(form, union, LOSS, list(got))
    rounded = torch_oracle.gradients(form, union, LOSS, list(got), dtype=torch.float32)
    loss_of = [_error(rounded[name], exact[name]) for name in got]
    allowed = slack * max(*loss_of, float(np.finfo(np.float32).eps))
    errors = {name: _error(value, exact[name]) for name, value in got.items()}
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= allowed, f"{worst}: {errors[worst]:.3g} > {allowed:.3g}"


def _error(value: Float64, exact: Float64) -> float:
    assert value.shape == exact.shape
    scale = float(np.max(np.abs(exact), initial=0.0)) or 1.0
    return float(np.max(np.abs(value - exact), initial=0.0)) / scale
