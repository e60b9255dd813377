"""Products of matrices, and normalizations that need no other replica."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.gradients.single_nodes import node_model, require_gradients

Array = npt.NDArray[Any]

FACTORS = {
    "matrices": ([3, 4], [4, 5]),
    "batches": ([2, 3, 4], [2, 4, 5]),
    "batch by matrix": ([2, 6, 3, 4], [4, 5]),
    "matrix by batch": ([3, 4], [6, 4, 5]),
    "broadcast batches": ([2, 1, 3, 4], [5, 4, 2]),
    "vector by matrix": ([4], [4, 5]),
    "matrix by vector": ([3, 4], [4]),
    "vector by batch": ([4], [2, 4, 5]),
    "batch by vector": ([2, 3, 4], [4]),
    "vectors": ([4], [4]),
    "empty batch": ([0, 3, 4], [4, 5]),
}
BIASES: dict[str, list[int] | None] = {
    "none": None,
    "number": [],
    "row": [5],
    "rows": [1, 5],
    "column": [3, 1],
    "whole": [3, 5],
}


def numbers(**shapes: list[int]) -> dict[str, Array]:
    random = np.random.default_rng(5)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("shapes", FACTORS.values(), ids=FACTORS)
def test_matmul(shapes: tuple[list[int], list[int]], dynamic: bool) -> None:
    inputs = numbers(a=shapes[0], b=shapes[1])
    require_gradients(node_model("MatMul", inputs, {}, dynamic=dynamic), inputs)


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
def test_gemm(bias: list[int] | None, trans_a: int, trans_b: int) -> None:
    inputs = numbers(a=[4, 3] if trans_a else [3, 4], b=[5, 4] if trans_b else [4, 5])
    if bias is not None:
        inputs.update(numbers(c=bias))
    attributes = {"transA": trans_a, "transB": trans_b, "alpha": 0.5, "beta": 1.5}
    require_gradients(node_model("Gemm", inputs, attributes), inputs)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("shape", [[6, 3], [4, 3, 5], [2, 3, 4, 2]], ids=str)
def test_frozen_batch_normalization(shape: list[int], dynamic: bool) -> None:
    inputs = numbers(x=shape, scale=[3], bias=[3], mean=[3], var=[3])
    inputs["var"] = np.abs(inputs["var"]) + np.float32(0.5)
    model = node_model("BatchNormalization", inputs, {}, dynamic=dynamic, constant=["mean", "var"])
    require_gradients(model, inputs)


@pytest.mark.parametrize("shape", [[6, 3], [2, 3, 4, 2]], ids=str)
def test_batch_normalization_in_training_mode(shape: list[int]) -> None:
    inputs = numbers(x=shape, scale=[3], bias=[3], mean=[3], var=[3])
    inputs["var"] = np.abs(inputs["var"])
    model = node_model("BatchNormalization", inputs, {"training_mode": 1}, constant=["mean", "var"])
    node = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    node.output.extend(["running_mean", "running_var"])
    require_gradients(model, inputs)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize(
    ("axis", "scale", "bias"),
    [(-1, [5], [5]), (-1, [5], None), (1, [4, 5], [4, 5]), (-2, [1, 5], [4, 1]), (-1, [], [1])],
)
def test_layer_normalization(
    axis: int, scale: list[int], bias: list[int] | None, dynamic: bool
) -> None:
    inputs = numbers(x=[3, 4, 5], scale=scale)
    if bias is not None:
        inputs.update(numbers(bias=bias))
    model = node_model("LayerNormalization", inputs, {"axis": axis}, dynamic=dynamic)
    require_gradients(model, inputs)


@pytest.mark.parametrize("shape", [[2, 3, 7], [2, 3, 4, 2]], ids=str)
def test_instance_normalization(shape: list[int]) -> None:
    inputs = numbers(x=shape, scale=[3], bias=[3])
    require_gradients(node_model("InstanceNormalization", inputs, {}), inputs)


@pytest.mark.parametrize(
    ("op_type", "names"),
    [
        ("BatchNormalization", ["x", "scale", "bias", "mean", "var"]),
        ("InstanceNormalization", ["x", "scale", "bias"]),
        ("GroupNormalization", ["x", "scale", "bias"]),
    ],
)
def test_float16(op_type: str, names: list[str]) -> None:
    shapes = {name: [2, 4, 3, 2] if name == "x" else [4] for name in names}
    inputs = {name: array.astype(np.float16) for name, array in numbers(**shapes).items()}
    if "var" in inputs:
        inputs["var"] = np.abs(inputs["var"]) + np.float16(0.5)
    attributes = {"num_groups": 2} if op_type == "GroupNormalization" else {}
    constant = [name for name in names if name in ("mean", "var")]
    require_gradients(node_model(op_type, inputs, attributes, constant=constant), inputs)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_normalization(groups: int) -> None:
    inputs = numbers(x=[2, 6, 4, 2], scale=[6], bias=[6])
    require_gradients(node_model("GroupNormalization", inputs, {"num_groups": groups}), inputs)
