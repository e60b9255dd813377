"""Faults put into what convert, fold and fuse write: each is refused, by the name of its node."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import syncbn_convert
from syncbn_convert.errors import VerificationError
from syncbn_convert.form import training_form
from syncbn_convert.verification import VerifyOptions, verdicts

from .samples import Array, changed, parse, save

Fault = Callable[[onnx.ModelProto], onnx.ModelProto]
Verify = Callable[..., verdicts.Verdict]

NET = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N,3,8,8] x) => (float[N,5] y)
<float[6,3,3,3] w1, float[6] c1, float[6] s1, float[6] b1, float[6] m1, float[6] v1,
 float[6,6,3,3] w2, float[6] s2, float[6] b2, float[6] m2, float[6] v2,
 float[4,6,3,3] w3, float[4] c3, float[4] s3, float[4] b3, float[4] m3, float[4] v3,
 float[4,5] w4, float[5] c4, float[4] sizes> {
  [conv1] h1 = Conv<pads = [1, 1, 1, 1]>(x, w1, c1)
  [norm1] n1 = BatchNormalization<epsilon = 0.01, momentum = 0.8>(h1, s1, b1, m1, v1)
  [relu1] r1 = Relu(n1)
  [conv2] h2 = Conv<pads = [1, 1, 1, 1]>(r1, w2)
  [norm2] n2 = BatchNormalization<epsilon = 0.01, momentum = 0.8>(h2, s2, b2, m2, v2)
  [join] a2 = Add(n2, r1)
  [resize] u2 = Resize<mode = "linear", coordinate_transformation_mode = "half_pixel">(a2, , sizes)
  [pool] p2 = MaxPool<kernel_shape = [2, 2], strides = [1, 1]>(u2)
  [conv3] h3 = Conv<strides = [2, 2]>(p2, w3, c3)
  [norm3] n3 = BatchNormalization<epsilon = 0.01, momentum = 0.8>(h3, s3, b3, m3, v3)
  [sigmoid] g3 = Sigmoid(n3)
  [mean] q3 = GlobalAveragePool(g3)
  [flat] f3 = Flatten(q3)
  [dense] d4 = Gemm<alpha = 0.5>(f3, w4, c4)
  [soft] y = Softmax<axis = 1>(d4)
}
"""
LAYERS = 100
CHAIN_TEXT = (
    '<ir_version: 10, opset_import: ["" : 17]> g (float[N,8] x0) => (float[N,8] y) <'
    + ", ".join(
        f"float[8,8] w{i}, float[8] s{i}, float[8] b{i}, float[8] m{i}, float[8] v{i}"
        for i in range(LAYERS)
    )
    + "> {"
    + "".join(
        f"[dense{i}] h{i} = MatMul(x{i}, w{i})"
        f"[norm{i}] n{i} = BatchNormalization(h{i}, s{i}, b{i}, m{i}, v{i})"
        f"[tanh{i}] t{i} = Tanh(n{i})"
        f"[join{i}] {'y' if i + 1 == LAYERS else f'x{i + 1}'} = Add(x{i}, t{i})"
        for i in range(LAYERS)
    )
    + "}"
)


def weighted(text: str) -> onnx.ModelProto:
    """Return a model whose weights keep the size of what goes through them, as trained ones do."""
    random = np.random.default_rng(5)
    arrays: dict[str, Array] = {"sizes": np.asarray([1, 1, 2, 2], np.float32)}
    for info in onnx.parser.parse_model(text).graph.value_info:
        shape = [dimension.dim_value for dimension in info.type.tensor_type.shape.dim]
        if len(shape) > 1:
            inputs = np.prod(shape[1:]) if len(shape) > 2 else shape[0]
            arrays[info.name] = random.standard_normal(shape) / np.sqrt(inputs)
        elif info.name[0] in "sv":
            arrays.setdefault(info.name, random.uniform(0.5, 1.5, shape))
        else:
            arrays[info.name] = random.standard_normal(shape) * 0.1
    return parse(text, seed=0, **arrays)


NETWORKS = {"net": weighted(NET), "chain": weighted(CHAIN_TEXT)}


def attribute(node: str, **values: object) -> Fault:
    """Give a node other attributes; None takes one away."""

    def fault(model: onnx.ModelProto) -> onnx.ModelProto:
        (found,) = (n for n in model.graph.node if n.name == node)
        kept = [a for a in found.attribute if a.name not in values]
        new = [helper.make_attribute(k, v) for k, v in values.items() if v is not None]
        del found.attribute[:]
        found.attribute.extend([*kept, *new])
        return model

    return fault


def operator(node: str, op_type: str, **attributes: object) -> Fault:
    """Make another operator of a node."""

    def fault(model: onnx.ModelProto) -> onnx.ModelProto:
        (found,) = (n for n in model.graph.node if n.name == node)
        made = helper.make_node(
            op_type, found.input[:1] if op_type in UNARY else found.input, found.output, node
        )
        made.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        found.CopyFrom(made)
        return model

    return fault


UNARY = ("Identity", "Relu", "Tanh", "AveragePool")


def inputs(node: str, *order: int) -> Fault:
    """Put the inputs of a node into another order, or leave some away."""

    def fault(model: onnx.ModelProto) -> onnx.ModelProto:
        (found,) = (n for n in model.graph.node if n.name == node)
        taken = [found.input[i] for i in order]
        del found.input[:]
        found.input.extend(taken)
        return model

    return fault


def reads(node: str, index: int, name: str) -> Fault:
    """Let a node read another value."""

    def fault(model: onnx.ModelProto) -> onnx.ModelProto:
        (found,) = (n for n in model.graph.node if n.name == node)
        found.input[index] = name
        return model

    return fault


def weight(node: str, change: Callable[[Array], Array], index: int = 1) -> Fault:
    """Change an initializer that a node reads."""

    def fault(model: onnx.ModelProto) -> onnx.ModelProto:
        (found,) = (n for n in model.graph.node if n.name == node)
        return changed(model, found.input[index], lambda values: change(values.copy()))

    return fault


def _times(values: Array) -> Array:
    return np.multiply(values, 1.001, dtype=values.dtype)


def _plus(values: Array) -> Array:
    return np.add(values, 1e-3, dtype=values.dtype)


def _swapped(values: Array) -> Array:
    return values[[1, 0, *range(2, len(values))]]


def _gone(values: Array) -> Array:
    return np.zeros_like(values)


def _narrow(values: Array) -> Array:
    with np.errstate(over="ignore"):
        return (values * np.float32(1e6)).astype(np.float16).astype(values.dtype)


def _rounded(values: Array) -> Array:
    return values.astype(np.float16).astype(values.dtype)


def _outside(values: Array) -> Array:
    """Epsilon added to the root: the variance that shows it, with epsilon 0.01 inside."""
    return (np.sqrt(values) + np.float32(0.01)) ** 2 - np.float32(0.01)


def _one_element(values: Array) -> Array:
    values.flat[7] += values.dtype.type(0.01)
    return values


def moved_statistics(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let one layer have the statistics of another."""
    return reads("norm2", 3, "m1")(reads("norm2", 4, "v1")(model))


def of_function(result: str, before: str, after: str) -> Fault:
    """Let a node of the training form's function read another value."""

    def fault(model: onnx.ModelProto) -> onnx.ModelProto:
        (function,) = (f for f in model.functions if f.name == training_form.OP_TYPE)
        (node,) = (n for n in function.node if result in n.output)
        node.input[list(node.input).index(before)] = after
        return model

    return fault


def _both(*faults: Fault) -> Fault:
    def fault(model: onnx.ModelProto) -> onnx.ModelProto:
        for each in faults:
            model = each(model)
        return model

    return fault


FUSED: Mapping[str, tuple[str, Fault]] = {
    "a weight off by 1e-3": ("conv1", weight("conv1", _times)),
    "a later weight off by 1e-3": ("conv3", weight("conv3", _times)),
    "the last weight off by 1e-3": ("dense", weight("dense", _times)),
    "one element of a weight": ("conv2", weight("conv2", _one_element)),
    "swapped output channels": ("conv2", weight("conv2", _swapped)),
    "swapped rows of a Gemm": ("dense", weight("dense", _swapped)),
    "a bias that is zero": ("conv1", weight("conv1", _gone, 2)),
    "a bias off by 1e-3": ("conv3", weight("conv3", _plus, 2)),
    "a bias that is dropped": ("conv2", inputs("conv2", 0, 1)),
    "swapped elements of a bias": ("conv1", weight("conv1", _swapped, 2)),
    "float16 overflow": ("conv1", weight("conv1", _narrow)),
    "float16 rounding": ("conv2", weight("conv2", _rounded)),
    "a shifted Resize": (
        "resize",
        attribute("resize", coordinate_transformation_mode="asymmetric"),
    ),
    "a nearest Resize": ("resize", attribute("resize", mode="nearest")),
    "align_corners": (
        "resize",
        attribute("resize", coordinate_transformation_mode="align_corners"),
    ),
    "pads on one side": ("conv1", attribute("conv1", pads=[0, 0, 2, 2])),
    "a Relu gone": ("relu1", operator("relu1", "Identity")),
    "another activation": ("sigmoid", operator("sigmoid", "Tanh")),
    "a residual read before Relu": ("join", reads("join", 1, "n1")),
    "a difference for a sum": ("join", operator("join", "Sub")),
    "average for maximum": (
        "pool",
        operator("pool", "AveragePool", kernel_shape=[2, 2], strides=[1, 1]),
    ),
    "alpha forgotten": ("dense", attribute("dense", alpha=1.0)),
    "another axis of Softmax": ("soft", attribute("soft", axis=0)),
    "kernels turned by 180 degrees": ("conv3", weight("conv3", lambda w: w[:, :, ::-1, ::-1])),
}

FOLDED: Mapping[str, tuple[str, Fault]] = {
    "epsilon outside the root": ("norm1", weight("norm1", _outside, 4)),
    "another epsilon": ("norm2", attribute("norm2", epsilon=0.011)),
    "the default epsilon": ("norm1", attribute("norm1", epsilon=None)),
    "the mean off by 1e-3": ("norm3", weight("norm3", _plus, 3)),
    "the variance off by 1e-3": ("norm2", weight("norm2", _times, 4)),
    "the mean at its initial value": ("norm1", weight("norm1", _gone, 3)),
    "the variance at its initial value": ("norm3", weight("norm3", np.ones_like, 4)),
    "standard deviations for variances": ("norm2", weight("norm2", np.sqrt, 4)),
    "gamma and beta exchanged": ("norm1", inputs("norm1", 0, 2, 1, 3, 4)),
    "mean and variance exchanged": ("norm2", inputs("norm2", 0, 1, 2, 4, 3)),
    "statistics of another layer": ("norm2", moved_statistics),
    "swapped channels of gamma": ("norm3", weight("norm3", _swapped)),
}

CONVERTED: Mapping[str, tuple[str, Fault]] = {
    "another epsilon": ("norm2", attribute("norm2", epsilon=0.011)),
    "momentum forgotten": ("norm1", of_function("running", "next", "batch")),
    "momentum the other way round": (
        "norm1",
        _both(
            of_function("added", "update", "momentum"), of_function("kept", "momentum", "update")
        ),
    ),
    "statistics that stay": ("norm1", of_function("running", "next", "old")),
    "a wrong axis": ("norm3", attribute("norm3", axis=2)),
    "a local count": ("norm1", of_function("divisor", "count", "local_count")),
    "a variance of its own": ("norm1", of_function("var_stash", "var", "local_var")),
    "a mean of its own": ("norm1", of_function("mean_stash", "mean", "local_mean")),
    "gamma and beta exchanged": ("norm1", inputs("norm1", 0, 2, 1, 3, 4)),
    "statistics of another layer": ("norm2", moved_statistics),
    "a moving variance off by 1e-3": ("norm3", weight("norm3", _times, 4)),
    "a weight off by 1e-3": ("conv3", weight("conv3", _times)),
    "a weight of a network of a hundred": ("dense57", weight("dense57", _times)),
}


@functools.cache
def rewritten(name: str, *rewrites: Callable[..., object]) -> onnx.ModelProto:
    """Return a network as the rewrites leave it, one after the other."""
    model = NETWORKS[name]
    for rewrite in rewrites:
        result = rewrite(model, verify=False)
        assert isinstance(result, onnx.ModelProto)
        model = result
    return model


def refused(folder: Path, verify: Verify, original: onnx.ModelProto, damaged: object) -> str:
    """Return the message by which a result is refused."""
    assert isinstance(damaged, onnx.ModelProto)
    with pytest.raises(VerificationError) as error:
        verify(*save(folder, original=original, damaged=damaged), VerifyOptions())
    return str(error.value)


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    return result


CONVERT, FOLD, FUSE = syncbn_convert.convert, syncbn_convert.fold, syncbn_convert.fuse


@pytest.mark.parametrize(
    ("verify", "network", "before", "rewrite"),
    [
        (verdicts.verify_same_function, "net", (), FUSE),
        (verdicts.verify_folded, "net", (CONVERT,), FOLD),
        (verdicts.verify_converted, "net", (), CONVERT),
        (verdicts.verify_converted, "chain", (), CONVERT),
    ],
)
def test_sound_results_pass(
    tmp_path: Path,
    verify: Verify,
    network: str,
    before: tuple[Callable[..., object], ...],
    rewrite: Callable[..., object],
) -> None:
    original, result = rewritten(network, *before), rewritten(network, *before, rewrite)
    verdict = verify(*save(tmp_path, original=original, result=result), VerifyOptions())
    assert verdict.max_relative_error <= verdict.tolerance < 1e-4


@pytest.mark.parametrize("name", FUSED)
def test_fused(tmp_path: Path, name: str) -> None:
    node, fault = FUSED[name]
    damaged = fault(copy(rewritten("net", FUSE)))
    message = refused(tmp_path, verdicts.verify_same_function, NETWORKS["net"], damaged)
    assert f"node '{node}'" in message or f"node '{node.replace('conv', 'norm')}'" in message


@pytest.mark.parametrize("name", FOLDED)
def test_folded(tmp_path: Path, name: str) -> None:
    node, fault = FOLDED[name]
    form = rewritten("net", CONVERT)
    damaged = fault(copy(rewritten("net", CONVERT, FOLD)))
    message = refused(tmp_path, verdicts.verify_folded, form, damaged)
    assert f"node '{node}'" in message


@pytest.mark.parametrize("name", CONVERTED)
def test_converted(tmp_path: Path, name: str) -> None:
    node, fault = CONVERTED[name]
    network = "chain" if node == "dense57" else "net"
    damaged = fault(copy(rewritten(network, CONVERT)))
    message = refused(tmp_path, verdicts.verify_converted, NETWORKS[network], damaged)
    assert re.search(rf"node '?\(?{node}\b", message, re.IGNORECASE)
