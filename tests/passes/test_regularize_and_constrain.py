from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import syncbn_convert
from syncbn_convert import (
    ConversionError,
    ConvertOptions,
    LayerRule,
    SyncBatchNormalizationOptions,
    run_replicas,
)
from syncbn_convert.options.keras_objects import constraint_of
from syncbn_convert.options.layers import LayerRules
from syncbn_convert.passes import ConstrainParameters, RegularizeParameters
from tests.harness import apply_and_check, run
from tests.models import DIGITS, batchnorm_model, make_layer

LAYER = make_layer(4)
MODEL = batchnorm_model(LAYER, ["n", 4, 3])
EPS = 16 * float(np.finfo(np.float32).eps)
LOSS = "regularization_loss"

TWICE = """
<ir_version: 10, opset_import: ["" : 17]>
twice (float[n, 2] x) => (float[n, 2] z)
<float[2] s = {3, -4}, float[2] b = {0, 1}, float[2] m = {0, 0}, float[2] v = {1, 1}>
{
    [first] y = BatchNormalization(x, s, b, m, v)
    [second] z = BatchNormalization(y, s, b, m, v)
}
"""


def rules(**options: Any) -> LayerRules:
    return LayerRules(default=SyncBatchNormalizationOptions(**options))


def convert(model: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    form = syncbn_convert.convert(
        model,
        ConvertOptions(parameters=SyncBatchNormalizationOptions(**options), reset=True),
        verify=False,
    )
    assert isinstance(form, onnx.ModelProto)
    return form


def with_algorithm(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Return inference graph and algorithm as one model, as the standard combines them."""
    (entry,) = model.training_info
    combined = onnx.ModelProto()
    combined.CopyFrom(model)
    del combined.training_info[:]
    combined.graph.node.extend(entry.algorithm.node)
    combined.graph.output.extend(entry.algorithm.output)
    onnx.checker.check_model(combined, full_check=True)
    return combined, {pair.key: pair.value for pair in entry.update_binding}


def test_loss_is_the_sum_over_layers_each_counted_once() -> None:
    x = np.ones((2, 2), np.float32)
    form = convert(onnx.parser.parse_model(TWICE), gamma_regularizer=0.5, beta_regularizer="L1")
    got = run(form, {"x": x})[LOSS]
    assert got.shape == ()
    assert got.dtype == np.float32
    assert got == pytest.approx(0.5 * (9 + 16) + 0.01 * 1, rel=EPS)


def test_every_replica_returns_the_whole_loss_once() -> None:
    options = {"gamma_regularizer": {"class_name": "L1L2", "config": {"l1": 0.25, "l2": 2.0}}}
    form = convert(MODEL, **options)
    wide = LAYER.scale.astype(np.float64)
    exact = 0.25 * np.abs(wide).sum() + 2.0 * np.square(wide).sum()
    pieces = [np.ones((size, 4, 3), np.float32) for size in (3, 1, 0, 2)]
    for result in run_replicas(form, [{"x": piece} for piece in pieces]):
        assert result[LOSS] == pytest.approx(exact, rel=EPS)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_loss_is_float32_or_wider(dtype: Any) -> None:
    layer = make_layer(4, dtype=dtype)
    made, _ = apply_and_check(
        RegularizeParameters(rules=rules(beta_regularizer="l2")),
        batchnorm_model(layer, ["n", 4, 3], dtype=dtype),
        feeds={"x": np.ones((1, 4, 3), dtype)},
        added_outputs=[LOSS],
    )
    got = run(made, {"x": np.ones((1, 4, 3), dtype)})[LOSS]
    assert got.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert got == pytest.approx(0.01 * np.square(layer.bias.astype(np.float64)).sum(), rel=EPS)


def test_frozen_layers_and_dropped_parameters_have_no_penalty_and_no_constraint() -> None:
    frozen = convert(MODEL, gamma_regularizer="l2", gamma_constraint="NonNeg", trainable=False)
    assert [output.name for output in frozen.graph.output] == ["y"]
    assert not frozen.training_info
    dropped = convert(MODEL, beta_regularizer="l2", beta_constraint="NonNeg", center=False)
    assert LOSS not in {output.name for output in dropped.graph.output}
    assert {pair.key for pair in dropped.training_info[0].update_binding} == {"m", "v"}


def test_a_value_of_that_name_is_not_overwritten() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(MODEL)
    model.graph.output[0].name = LOSS
    model.graph.node[0].output[0] = LOSS
    with pytest.raises(ConversionError, match="value named 'regularization_loss' of its own"):
        convert(model, gamma_regularizer="l2")


CONSTRAINTS = [
    "NonNeg",
    "UnitNorm",
    {"class_name": "MaxNorm", "config": {"max_value": 0.5}},
    {"class_name": "MinMaxNorm", "config": {"min_value": 4.0, "max_value": 5.0, "rate": 0.5}},
]


@pytest.mark.parametrize(
    ("given", "dtype"), list(itertools.product(CONSTRAINTS, (np.float16, np.float32, np.float64))),
    ids=str,
)  # fmt: skip
def test_projection_is_bound_and_computes_the_constraint(given: Any, dtype: Any) -> None:
    layer = make_layer(4, dtype=dtype)
    model = batchnorm_model(layer, ["n", 4, 3], dtype=dtype)
    apply_and_check(ConstrainParameters(rules=rules(gamma_constraint=given)), model)
    combined, bindings = with_algorithm(convert(model, gamma_constraint=given))
    assert bindings == {"s": "s.projected", "m": "m.next", "v": "v.next"}
    got = run(combined, {"x": np.ones((2, 4, 3), dtype)})["s.projected"]
    assert got.dtype == dtype
    exact = constraint_of(given)(layer.scale)
    unit = float(np.finfo(dtype).eps) if dtype == np.float16 else EPS
    np.testing.assert_allclose(got.astype(np.float64), exact, rtol=0, atol=unit * 8)


def test_a_parameter_of_two_layers_has_one_constraint() -> None:
    model = onnx.parser.parse_model(
        TWICE.replace(
            "[second] z = BatchNormalization(y, s, b, m, v)",
            "[second] z = BatchNormalization(y, s, b, v, v)",
        )
    )
    options = [
        SyncBatchNormalizationOptions(gamma_constraint=name) for name in ("NonNeg", "MaxNorm")
    ]
    layers = tuple(
        LayerRule(pattern=name, options=option)
        for name, option in zip(("first", "second"), options, strict=True)
    )
    with pytest.raises(ConversionError, match="shared with another parameter"):
        syncbn_convert.convert(model, ConvertOptions(layers=layers))


def test_fold_removes_what_only_training_needs() -> None:
    original = onnx.load(DIGITS)
    form = convert(original, gamma_regularizer="l2", gamma_constraint="NonNeg")
    assert LOSS in {output.name for output in form.graph.output}
    folded = syncbn_convert.fold(form)
    assert isinstance(folded, onnx.ModelProto)
    assert not folded.training_info
    assert [output.name for output in folded.graph.output] == [
        output.name for output in original.graph.output
    ]
    assert [node.op_type for node in folded.graph.node] == [
        node.op_type for node in original.graph.node
    ]
