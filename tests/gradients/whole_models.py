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
from syncbn_convert import ConvertOptions
from syncbn_convert.files import model_file
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
    return with_loss(form)


def with_loss(form: onnx.ModelProto) -> onnx.ModelProto:
    """Add that loss to a training form, in place."""
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


def differentiated(form: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The form with its gradients, and the names of the parameters."""
    subject = model_file.as_model(form)
    result = Differentiate(loss=LOSS)(subject)
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
    form: onnx.ModelProto, got: Mapping[str, Float64], union: Feeds, *, slack: float = 4.0
) -> None:
    """Hold gradients to torch's float64 ones, within `slack` times what float32 loses there."""
    exact = torch_oracle.gradients(form, union, LOSS, list(got))
    rounded = torch_oracle.gradients(form, union, LOSS, list(got), dtype=torch.float32)
    require_close(got, exact, rounded, slack=slack)


def require_close(
    got: Mapping[str, Float64],
    exact: Mapping[str, Float64],
    rounded: Mapping[str, Float64],
    *,
    slack: float = 4.0,
) -> None:
    """Hold gradients to exact ones, by what another implementation loses in float32.

    Errors are Euclidean, relative to a parameter's gradient: rounding lets single activations fall
    on the other side of zero, and their gradients with them. A gradient that is zero but for
    rounding, as that of a bias before a normalization, is measured by 1e-4 of the largest of all.
    The worst error of the other implementation is the yardstick for all, as one gradient may happen
    to be exact.
    """
    norms = {name: float(np.linalg.norm(value)) for name, value in exact.items()}
    floor = 1e-4 * max(norms.values())

    def error(value: Float64, name: str) -> float:
        assert value.shape == exact[name].shape, name
        return float(np.linalg.norm(value - exact[name])) / max(norms[name], floor)

    lost = max(error(rounded[name], name) for name in exact)
    allowed = slack * max(lost, float(np.finfo(np.float32).eps))
    assert allowed < 0.5, "what float32 loses says nothing"
    errors = {name: error(got[name], name) for name in exact}
    worst = max(errors, key=errors.__getitem__)
    print(f"worst error {errors[worst]:.2g} ({worst}), of the other float32 {lost:.2g}")
    assert errors[worst] <= allowed, f"{worst}: {errors[worst]:.3g} > {allowed:.3g}"
