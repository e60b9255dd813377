"""Convolutions and pools: random shapes and attributes, sizes known or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from syncbn_convert.errors import ConversionError
from syncbn_convert.passes import Differentiate
from tests.gradients.single_nodes import node_model, require_gradients

Array = npt.NDArray[Any]
Attributes = dict[str, Any]

SEEDS = [*range(6), *(pytest.param(seed, marks=pytest.mark.sweep) for seed in range(6, 60))]


def draw(random: np.random.Generator, axes: int) -> tuple[list[int], Attributes]:
    """Draw an image size, and a window that fits into it."""
    kernel = random.integers(1, 4, axes)
    dilations = random.integers(1, 3, axes)
    strides = random.integers(1, 4, axes)
    extents = (kernel - 1) * dilations + 1
    pads = random.integers(0, 3, 2 * axes)
    pads = np.minimum(pads, np.tile(kernel - 1, 2))
    size = extents + random.integers(0, 6, axes)
    attributes = {
        "kernel_shape": kernel.tolist(),
        "dilations": dilations.tolist(),
        "strides": strides.tolist(),
    }
    mode = random.choice(["explicit", "explicit", "VALID", "SAME_UPPER", "SAME_LOWER"])
    if mode == "explicit":
        attributes["pads"] = pads.tolist()
    else:
        attributes["auto_pad"] = str(mode)
    if str(mode).startswith("SAME"):
        attributes["dilations"] = [1] * axes
    return size.tolist(), attributes


def convolution(seed: int) -> tuple[dict[str, Array], Attributes]:
    random = np.random.default_rng(seed)
    axes = int(random.integers(1, 4))
    size, attributes = draw(random, axes)
    group = int(random.choice([1, 1, 2, 3]))
    inner, outer = (int(count) for count in random.integers(1, 4, 2))
    if random.random() < 0.3:
        inner = 1
    shapes = {
        "x": [int(random.integers(0, 4)), group * inner, *size],
        "w": [group * outer, inner, *attributes["kernel_shape"]],
    }
    if random.random() < 0.5:
        shapes["b"] = [group * outer]
    inputs = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return inputs, {**attributes, "group": group}


def transposed(seed: int) -> tuple[dict[str, Array], Attributes]:
    random = np.random.default_rng(seed)
    inputs, attributes = convolution(seed)
    group = attributes["group"]
    outer, inner, *kernel = inputs["w"].shape
    inputs["w"] = np.ascontiguousarray(
        inputs["w"].reshape(group, -1, inner, *kernel).swapaxes(1, 2)
    ).reshape(group * inner, outer // group, *kernel)
    if random.random() < 0.5 and "auto_pad" not in attributes:
        attributes["output_padding"] = [
            int(random.integers(0, stride)) for stride in attributes["strides"]
        ]
    return inputs, attributes


def pool(seed: int, *, ceil: bool) -> tuple[dict[str, Array], Attributes]:
    random = np.random.default_rng(seed)
    size, attributes = draw(random, int(random.integers(1, 4)))
    if attributes.get("auto_pad", "").startswith("SAME"):
        attributes["strides"] = np.minimum(
            attributes["strides"], attributes["kernel_shape"]
        ).tolist()
    if ceil and "auto_pad" not in attributes and not _starts_in_pads(size, attributes):
        attributes["ceil_mode"] = 1
    shape = [int(random.integers(0, 4)), 2, *size]
    return {"x": random.permutation(int(np.prod(shape))).reshape(shape).astype(np.float32)}, (
        attributes
    )


def _starts_in_pads(size: list[int], attributes: Attributes) -> bool:
    """Whether ceil mode adds a window that sees pads alone: ONNX's inference counts it, no kernel.

    The two disagree on the size of the output then, and ONNX Runtime does not load the node.
    """
    axes = len(size)
    pads, strides = attributes["pads"], attributes["strides"]
    extents = [
        (length - 1) * dilation + 1
        for length, dilation in zip(
            attributes["kernel_shape"], attributes["dilations"], strict=True
        )
    ]
    rooms = [size[i] + pads[i] + pads[i + axes] - extents[i] for i in range(axes)]
    return any(-(-rooms[i] // strides[i]) * strides[i] >= size[i] + pads[i] for i in range(axes))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("seed", SEEDS)
def test_conv(seed: int, dynamic: bool) -> None:
    inputs, attributes = convolution(seed)
    require_gradients(node_model("Conv", inputs, attributes, dynamic=dynamic), inputs)


@pytest.mark.parametrize("seed", SEEDS)
def test_conv_transpose(seed: int) -> None:
    inputs, attributes = transposed(seed)
    require_gradients(node_model("ConvTranspose", inputs, attributes), inputs)


@pytest.mark.parametrize("ceil", [False, True], ids=["floor", "ceil"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("seed", SEEDS)
def test_max_pool(seed: int, dynamic: bool, ceil: bool) -> None:
    inputs, attributes = pool(seed, ceil=ceil)
    require_gradients(node_model("MaxPool", inputs, attributes, dynamic=dynamic), inputs)


@pytest.mark.parametrize("with_pads", [0, 1])
@pytest.mark.parametrize("ceil", [False, True], ids=["floor", "ceil"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("seed", SEEDS)
def test_average_pool(seed: int, dynamic: bool, ceil: bool, with_pads: int) -> None:
    inputs, attributes = pool(seed, ceil=ceil)
    inputs = {"x": inputs["x"] / np.float32(max(inputs["x"].size, 1))}
    attributes["count_include_pad"] = with_pads
    require_gradients(node_model("AveragePool", inputs, attributes, dynamic=dynamic), inputs)


@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_global_pools(op_type: str, dynamic: bool) -> None:
    inputs, _ = pool(3, ceil=False)
    require_gradients(node_model(op_type, inputs, {}, dynamic=dynamic), inputs)


def test_output_shape_is_refused() -> None:
    inputs, attributes = transposed(0)
    attributes["output_shape"] = [4] * (inputs["x"].ndim - 2)
    model = ir.from_proto(node_model("ConvTranspose", inputs, attributes))
    with pytest.raises(ConversionError, match=r"node 'node' \(ConvTranspose\) has no gradient"):
        Differentiate(loss="loss")(model)


def test_auto_pad_of_a_pool_that_jumps_is_refused() -> None:
    inputs, _ = pool(3, ceil=False)
    axes = inputs["x"].ndim - 2
    attributes = {"kernel_shape": [1] * axes, "strides": [2] * axes, "auto_pad": "SAME_UPPER"}
    model = ir.from_proto(node_model("MaxPool", inputs, attributes))
    with pytest.raises(ConversionError, match="spell it with pads"):
        Differentiate(loss="loss")(model)


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose", "MaxPool", "AveragePool"])
def test_float16(op_type: str) -> None:
    """ONNX Runtime computes most of it in float32, in between."""
    if op_type.endswith("Pool"):
        inputs, attributes = pool(4, ceil=False)
        inputs["x"] = inputs["x"] / np.float32(max(inputs["x"].size, 1))
    else:
        inputs, attributes = (convolution if op_type == "Conv" else transposed)(2)
    halves = {name: array.astype(np.float16) for name, array in inputs.items()}
    require_gradients(node_model(op_type, halves, attributes), halves)
