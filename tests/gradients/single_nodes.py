"""The gradient of one node, all its inputs trained, against torch's autograd in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from syncbn_convert.files import model_file
from syncbn_convert.passes import Differentiate
from tests.gradients import torch_oracle
from tests.harness import run

Array = npt.NDArray[Any]

OPSET = 21


def node_model(
    op_type: str,
    inputs: Mapping[str, Array],
    attributes: Mapping[str, Any],
    *,
    dynamic: bool = False,
    constant: Sequence[str] = (),
    opset: int = OPSET,
) -> onnx.ModelProto:
    """A model `loss = sum(op(inputs) * direction)` of initializers.

    Args:
        op_type: The node's operator.
        inputs: Its inputs by name.
        attributes: Its attributes.
        dynamic: Whether the sizes of the first input stay unknown until the run.
        constant: Inputs that are Constant nodes, which nothing trains.
        opset: Of the model.
    """
    first = next(iter(inputs))
    names = list(inputs)
    nodes = []
    graph_inputs = [helper.make_tensor_value_info("direction", _element(inputs[first]), [])]
    if dynamic:
        rank = inputs[first].ndim
        graph_inputs.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [rank]))
        nodes.append(helper.make_node("Reshape", [first, "shape"], ["reshaped"]))
        names[0] = "reshaped"
    nodes += [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(inputs[name]))
        for name in constant
    ]
    nodes += [
        helper.make_node(op_type, names, ["y"], name="node", **attributes),
        helper.make_node("Mul", ["y", "direction"], ["product"]),
        helper.make_node("ReduceSum", ["product"], ["loss"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "node",
        graph_inputs,
        [
            helper.make_tensor_value_info("loss", _element(inputs[first]), []),
            helper.make_tensor_value_info("y", _element(inputs[first]), []),
        ],
        [
            numpy_helper.from_array(array, name)
            for name, array in inputs.items()
            if name not in constant
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    y = torch_oracle.run(model, _some_feeds(inputs))["y"]
    for value in (graph.input[0], graph.output[1]):
        for _ in y.shape:
            value.type.tensor_type.shape.dim.add()
    model.graph.CopyFrom(graph)
    return model


def _some_feeds(inputs: Mapping[str, Array]) -> dict[str, Array]:
    shape = np.array(next(iter(inputs.values())).shape, dtype=np.int64)
    return {"shape": shape, "direction": np.zeros((), np.float32)}


def require_gradients(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> None:
    """Differentiate, run on ONNX Runtime and hold every gradient to torch's in float64.

    Each element is a sum of products; its error is bounded by the roundings of the same sum over
    absolute values, which the float64 gradient of the absolute problem is an upper bound of. Taking
    the largest magnitude times the square root of the count instead keeps it sharp.
    """
    feeds = _some_feeds(inputs)
    if all(value.name != "shape" for value in model.graph.input):
        del feeds["shape"]
    trained = [tensor.name for tensor in model.graph.initializer if tensor.data_type in _FLOATS]
    subject = model_file.as_model(model)
    Differentiate(loss="loss", trainable=tuple(f"^{name}$" for name in trained))(subject)
    proto = model_file.to_proto(subject)
    onnx.checker.check_model(proto, full_check=True)
    y = torch_oracle.run(model, feeds)["y"]
    random = np.random.default_rng(7)
    first = next(iter(inputs.values()))
    feeds["direction"] = random.normal(size=tuple(y.shape)).astype(first.dtype)
    got = run(proto, feeds)
    wanted = torch_oracle.gradients(model, feeds, "loss", trained)
    eps = float(np.finfo(first.dtype).eps)
    values = torch_oracle.run(model, feeds)
    np.testing.assert_allclose(got["y"], values["y"].numpy(), rtol=100 * eps, atol=100 * eps)
    for name in trained:
        value = got[f"{name}.grad"]
        assert value.dtype == inputs[name].dtype
        assert value.shape == inputs[name].shape
        scale = float(np.max(np.abs(wanted[name]), initial=0.0)) + 1.0
        terms = max(feeds["direction"].size, first.size)
        allowed = 8 * eps * np.sqrt(terms) * scale
        error = float(np.max(np.abs(value.astype(np.float64) - wanted[name]), initial=0.0))
        assert error <= allowed, f"{name}: {error:.3g} > {allowed:.3g}"


_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)


def _element(array: Array) -> int:
    return helper.np_dtype_to_tensor_dtype(array.dtype)
