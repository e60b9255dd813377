"""Channel axes other than 1: converted, run on replicas, folded and verified."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import syncbn_convert
from syncbn_convert import ConvertOptions, FoldOptions, SyncBatchNormalizationOptions
from syncbn_convert.runtime import run_replicas
from tests import harness, oracle
from tests.models import batchnorm_model, float32, make_layer

CHANNELS = 3
PIECES = (4, 1, 2)
ROUNDING = 64 * float(np.finfo(np.float32).eps)
"""Sums of a few dozen values of magnitude 1, in float32."""

AXES = [(axis, rank) for axis, rank in itertools.product((-1, 1, 2), (2, 3, 4, 5)) if axis < rank]


def layer_of(axis: int) -> oracle.Layer:
    base = make_layer(CHANNELS)
    return oracle.Layer(
        base.scale, base.bias, base.mean, base.var, base.epsilon, base.momentum, axis
    )


def pieces_of(axis: int, rank: int) -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng([rank, axis + 5])
    shape = [0, 5, 4, 2, 6][:rank]
    shape[axis] = CHANNELS
    return [(random.normal(size=(size, *shape[1:])) * 2 + 1).astype(np.float32) for size in PIECES]


def form_of(axis: int, rank: int, *, known: bool) -> onnx.ModelProto:
    shape: list[int | str] = ["n", *(f"d{number}" for number in range(1, rank))]
    if known:
        shape = ["n", *pieces_of(axis, rank)[0].shape[1:]]
    options = ConvertOptions(parameters=SyncBatchNormalizationOptions(axis=axis), reset=True)
    sizes = ",".join(str(size) for size in pieces_of(axis, rank)[0].shape)
    form = syncbn_convert.convert(
        batchnorm_model(layer_of(axis), shape),
        options,
        verify_options=syncbn_convert.VerifyOptions(
            input_shapes={"x": tuple(int(size) for size in sizes.split(","))}
        ),
    )
    assert isinstance(form, onnx.ModelProto)
    return form


@pytest.mark.parametrize(("axis", "rank"), AXES)
def test_converted_run_on_three_replicas_folded_and_verified(axis: int, rank: int) -> None:
    layer, pieces = layer_of(axis), pieces_of(axis, rank)
    form = form_of(axis, rank, known=True)
    assert "Transpose" not in {node.op_type for node in form.graph.node}
    wanted = oracle.train(layer, pieces)
    results = run_replicas(form, [{"x": piece} for piece in pieces])
    for result, y in zip(results, wanted.outputs, strict=True):
        np.testing.assert_allclose(result["y"], y, atol=ROUNDING * np.abs(y).max(), rtol=0)
        np.testing.assert_allclose(result["m.next"], wanted.mean, atol=ROUNDING, rtol=0)
        np.testing.assert_allclose(result["v.next"], wanted.var, atol=ROUNDING * 8, rtol=0)

    first = axis in (1, 1 - rank)
    exact = oracle.infer(layer, pieces[0])
    for keep, operators in (
        (False, ["BatchNormalization"] if first else ["Mul", "Add"]),
        (True, [] if first else ["Transpose", "BatchNormalization", "Transpose"]),
    ):
        folded = syncbn_convert.fold(form, FoldOptions(keep_batchnorm=keep))
        assert isinstance(folded, onnx.ModelProto)
        assert [node.op_type for node in folded.graph.node] == operators or not operators
        got = harness.run(folded, {"x": pieces[0]})["y"]
        np.testing.assert_allclose(got, exact, atol=ROUNDING * np.abs(exact).max(), rtol=0)
        assert {value.name for value in folded.graph.input} == {"x"}
        assert [value.name for value in folded.graph.output] == ["y"]


@pytest.mark.parametrize(("axis", "rank"), [(-1, 4), (2, 3)])
def test_sizes_that_the_model_leaves_open(axis: int, rank: int) -> None:
    form = form_of(axis, rank, known=False)
    folded = syncbn_convert.fold(
        form,
        verify_options=syncbn_convert.VerifyOptions(
            input_shapes={"x": pieces_of(axis, rank)[0].shape}
        ),
    )
    assert isinstance(folded, onnx.ModelProto)
    (piece, *_) = pieces_of(axis, rank)
    exact = oracle.infer(layer_of(axis), piece)
    got = harness.run(folded, {"x": piece})["y"]
    np.testing.assert_allclose(got, exact, atol=ROUNDING * np.abs(exact).max(), rtol=0)


def test_float16_is_folded_in_float32() -> None:
    layer = layer_of(-1)
    model = batchnorm_model(layer, ["n", 4, CHANNELS], dtype=np.float16)
    options = ConvertOptions(parameters=SyncBatchNormalizationOptions(axis=-1), reset=True)
    folded = syncbn_convert.fold(syncbn_convert.convert(model, options))
    assert isinstance(folded, onnx.ModelProto)
    assert [node.op_type for node in folded.graph.node] == ["Cast", "Mul", "Add", "Cast"]
    x = np.random.default_rng(0).normal(size=(2, 4, CHANNELS)).astype(np.float16)
    exact = oracle.infer(layer, x)
    got = harness.run(folded, {"x": x})["y"].astype(np.float64)
    unit = float(np.finfo(np.float16).eps)
    np.testing.assert_allclose(got, exact, atol=unit * np.abs(exact).max(), rtol=0)


def test_unknown_rank_is_folded_by_the_formula() -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 17]>
        reshaped (float[n] flat, int64[rank] shape) => (float[a, b, c, d] y)
        <float[3] s = {1, 2, 3}, float[3] b = {1, 0, -1}, float[3] m = {0, 1, 2},
         float[3] v = {1, 2, 1}>
        {
            x = Reshape(flat, shape)
            y = BatchNormalization(x, s, b, m, v)
        }
        """
    )
    options = ConvertOptions(parameters=SyncBatchNormalizationOptions(axis=2), reset=True)
    form = syncbn_convert.convert(model, options, verify=False)
    folded = syncbn_convert.fold(form, verify=False)
    assert isinstance(folded, onnx.ModelProto)
    assert "BatchNormalization" not in {node.op_type for node in folded.graph.node}
    layer = oracle.Layer(
        float32(1, 2, 3), float32(1, 0, -1), float32(0, 1, 2), float32(1, 2, 1), axis=2
    )
    (piece, *_) = pieces_of(2, 4)
    exact = oracle.infer(layer, piece)
    feeds = {"flat": piece.reshape(-1), "shape": np.array(piece.shape)}
    got = harness.run(folded, feeds)["y"]
    np.testing.assert_allclose(got, exact, atol=ROUNDING * np.abs(exact).max(), rtol=0)
