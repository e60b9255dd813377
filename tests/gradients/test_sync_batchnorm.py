"""SyncBatchNormalizationGrad on 1 to 4 replicas, against torch's autograd of the union."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper

from syncbn_convert.files import model_file
from syncbn_convert.form import training_form
from syncbn_convert.passes import Differentiate
from tests.gradients.replicas import run_together
from tests.harness import run

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

CHANNELS = 5
EPSILON = 1e-3
PIECES = {
    "1": (6,),
    "2 uneven": (1, 5),
    "3, one empty": (4, 0, 3),
    "4, two empty": (0, 2, 5, 0),
}
SHAPES = {"rank 2": (1, ()), "rank 3": (1, (7,)), "rank 4": (1, (3, 4)), "axis last": (-1, (3, 4))}
UNITS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11}


def shape_of(samples: int, layout: str) -> list[int]:
    axis, spatial = SHAPES[layout]
    return [samples, CHANNELS, *spatial] if axis == 1 else [samples, *spatial, CHANNELS]


def gradient_model(
    x: Array, parameters: dict[str, Array], layout: str, group: int = 0
) -> onnx.ModelProto:
    """A loss sum(Y * direction) whose gradients of x, scale and bias are outputs."""
    moving = {name: np.ones(CHANNELS, x.dtype) for name in ("mean", "var")}
    element = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [
            helper.make_node(
                training_form.OP_TYPE,
                ["x", "scale", "bias", "mean", "var"],
                ["y"],
                name="norm",
                domain=training_form.DOMAIN,
                epsilon=EPSILON,
                axis=SHAPES[layout][0],
                group_size=group,
                stash_type=training_form.stash_type(ir.DataType(element)),
            ),
            helper.make_node("Mul", ["y", "direction"], ["product"]),
            helper.make_node("Cast", ["product"], ["wide"], to=onnx.TensorProto.DOUBLE),
            helper.make_node("ReduceSum", ["wide"], ["loss"], keepdims=0),
        ],
        "norm",
        [helper.make_tensor_value_info("direction", element, x.shape)],
        [helper.make_tensor_value_info("loss", onnx.TensorProto.DOUBLE, [])],
        [
            numpy_helper.from_array(array, name)
            for name, array in {"x": x, **parameters, **moving}.items()
        ],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(training_form.DOMAIN, 1)]
    subject = ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=10))
    training_form.add_to(subject, 18)
    Differentiate(loss="loss")(subject)
    proto = model_file.to_proto(subject)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def reference(
    pieces: Sequence[Array], directions: Sequence[Array], parameters: dict[str, Array], axis: int
) -> tuple[list[Float64], Float64, Float64]:
    """Gradients of every piece, of scale and of bias: plain batch normalization of the union."""
    xs = [torch.tensor(piece.astype(np.float64), requires_grad=True) for piece in pieces]
    scale, bias = (
        torch.tensor(parameters[name].astype(np.float64), requires_grad=True)
        for name in ("scale", "bias")
    )
    union = torch.cat(xs).movedim(axis, 1)
    y = torch.nn.functional.batch_norm(
        union, None, None, scale, bias, training=True, eps=float(np.float32(EPSILON))
    ).movedim(1, axis)
    direction = torch.tensor(np.concatenate(directions).astype(np.float64))
    found = torch.autograd.grad((y * direction).sum(), [*xs, scale, bias])
    arrays = [value.numpy() for value in found]
    return arrays[: len(xs)], arrays[-2], arrays[-1]


def random_case(
    sizes: Sequence[int], layout: str, dtype: str
) -> tuple[list[Array], list[Array], dict[str, Array]]:
    random = np.random.default_rng(len(sizes))
    shapes = [shape_of(size, layout) for size in sizes]
    pieces = [(random.normal(size=shape) * 2 + 1).astype(dtype) for shape in shapes]
    directions = [random.normal(size=shape).astype(dtype) for shape in shapes]
    parameters = {name: random.normal(size=CHANNELS).astype(dtype) for name in ("scale", "bias")}
    return pieces, directions, parameters


def require_close(got: Array, wanted: Float64, scale: float, unit: float, count: int) -> None:
    """Allow some roundings of the largest term, and those of a sum of `count` terms."""
    assert got.shape == wanted.shape
    allowed = unit * (32 + count) * scale
    error = float(np.max(np.abs(got.astype(np.float64) - wanted), initial=0.0))
    assert error <= allowed, f"{error:.3g} > {allowed:.3g}"


@pytest.mark.parametrize("dtype", UNITS)
@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("name", PIECES)
def test_gradient_of_the_union(name: str, layout: str, dtype: str) -> None:
    pieces, directions, parameters = random_case(PIECES[name], layout, dtype)
    models = [gradient_model(piece, parameters, layout) for piece in pieces]
    feeds = [{"direction": direction} for direction in directions]
    got = run_together(models, feeds)
    dx, dscale, dbias = reference(pieces, directions, parameters, SHAPES[layout][0])
    unit = UNITS[dtype]
    largest = max(float(np.max(np.abs(piece), initial=0.0)) for piece in dx)
    for result, wanted in zip(got, dx, strict=True):
        assert result["x.grad"].dtype == np.dtype(dtype)
        require_close(result["x.grad"], wanted, largest, unit, 4)
    terms = sum(float(np.abs(direction).sum()) for direction in directions) / CHANNELS
    for output, wanted in (("scale.grad", dscale), ("bias.grad", dbias)):
        total = np.sum([result[output].astype(np.float64) for result in got], axis=0)
        require_close(total, wanted, terms, unit, 4)


def test_one_replica_needs_no_operator_of_the_runtime() -> None:
    pieces, directions, parameters = random_case((6,), "rank 4", "float64")
    model = gradient_model(pieces[0], parameters, "rank 4")
    got = run(model, {"direction": directions[0]})
    dx, _, _ = reference(pieces, directions, parameters, 1)
    require_close(got["x.grad"], dx[0], float(np.max(np.abs(dx[0]))), UNITS["float64"], 4)


def test_groups_of_replicas_sum_apart() -> None:
    pieces, directions, parameters = random_case((2, 3, 4, 0), "rank 4", "float64")
    models = [gradient_model(piece, parameters, "rank 4", group=2) for piece in pieces]
    feeds = [{"direction": direction} for direction in directions]
    got = run_together(models, feeds, group_sizes=[2])
    for first in (0, 2):
        group = slice(first, first + 2)
        dx, _, _ = reference(pieces[group], directions[group], parameters, 1)
        for result, wanted in zip(got[group], dx, strict=True):
            largest = max(float(np.max(np.abs(piece), initial=0.0)) for piece in dx)
            require_close(result["x.grad"], wanted, largest, UNITS["float64"], 4)


def test_mean_far_from_zero() -> None:
    """In float32 at |mean| / std = 1e3 the mean itself is only known to 1e3 roundings of std."""
    pieces, directions, parameters = random_case((4, 3), "rank 4", "float32")
    pieces = [piece + np.float32(2e3) for piece in pieces]
    models = [gradient_model(piece, parameters, "rank 4") for piece in pieces]
    got = run_together(models, [{"direction": direction} for direction in directions])
    dx, _, _ = reference(pieces, directions, parameters, 1)
    largest = max(float(np.max(np.abs(piece))) for piece in dx)
    for result, wanted in zip(got, dx, strict=True):
        require_close(result["x.grad"], wanted, largest, UNITS["float32"], 2000)
