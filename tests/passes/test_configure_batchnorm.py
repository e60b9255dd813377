from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper as onh
import onnx.parser
import pytest

import syncbn_convert
from syncbn_convert import (
    ConversionError,
    ConvertOptions,
    LayerRule,
    SyncBatchNormalizationOptions,
)
from syncbn_convert.options.layers import LayerRules
from syncbn_convert.passes import ConfigureBatchNorm
from tests import oracle
from tests.harness import apply_and_check, run
from tests.models import DIGITS, batchnorm_model, make_layer

LAYER = make_layer(3)
MODEL = batchnorm_model(LAYER, ["n", 3, 4])
X = np.random.default_rng(3).normal(size=(2, 3, 4)).astype(np.float32)
EPS = 16 * float(np.finfo(np.float32).eps)
NORMAL = {"class_name": "RandomNormal", "config": {"stddev": 0.5, "seed": 4}}


def rules(*, reset: bool = True, seed: int = 0, **options: Any) -> LayerRules:
    return LayerRules(default=SyncBatchNormalizationOptions(**options), reset=reset, seed=seed)


def parameters(model: onnx.ModelProto) -> dict[str, Any]:
    return {tensor.name: onh.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"epsilon": 0.25}, {"epsilon": 0.25}),
        ({"scale": False}, {"scale": np.ones(3)}),
        ({"center": False}, {"bias": np.zeros(3)}),
        ({"gamma_initializer": 2.5}, {"scale": np.full(3, 2.5)}),
        ({"beta_initializer": "ones"}, {"bias": np.ones(3)}),
        ({"moving_mean_initializer": "zeros"}, {"mean": np.zeros(3)}),
        ({"moving_variance_initializer": 4}, {"var": np.full(3, 4.0)}),
        ({"beta_initializer": NORMAL},
         {"bias": np.random.default_rng(4).standard_normal(3).astype(np.float32) * 0.5}),
    ],
    ids=lambda value: "-".join(value),
)  # fmt: skip
def test_options_are_what_inference_computes_with(
    options: dict[str, Any], changes: dict[str, Any]
) -> None:
    layer = dataclasses.replace(LAYER, **changes)
    apply_and_check(
        ConfigureBatchNorm(rules=rules(**options)),
        MODEL,
        feeds={"x": X},
        expected=lambda feeds: {"y": oracle.infer(layer, feeds["x"])},
        rtol=EPS,
    )


def test_momentum_moves_statistics_and_says_so() -> None:
    _, result = apply_and_check(ConfigureBatchNorm(rules=rules(momentum=0.75)), MODEL)
    assert [record.reason for record in result.records] == ["momentum 0.8 -> 0.75"]
    options = ConvertOptions(parameters=SyncBatchNormalizationOptions(momentum=0.75))
    form = syncbn_convert.convert(MODEL, options)
    assert isinstance(form, onnx.ModelProto)
    wanted = oracle.train(dataclasses.replace(LAYER, momentum=0.75), [X])
    np.testing.assert_allclose(run(form, {"x": X})["m.next"], wanted.mean, rtol=0, atol=EPS)


def test_without_options_nothing_changes() -> None:
    _, result = apply_and_check(ConfigureBatchNorm(), MODEL)
    assert not result.records


def test_random_values_differ_by_layer_and_by_seed_but_not_by_run() -> None:
    model = onnx.load(DIGITS)

    def gammas(seed: int) -> list[bytes]:
        made, _ = apply_and_check(
            ConfigureBatchNorm(rules=rules(seed=seed, gamma_initializer="random_normal")), model
        )
        return [parameters(made)[f"{name}_bn/gamma"][:8].tobytes() for name in ("stem", "hidden")]

    assert gammas(0) == gammas(0)
    assert len({*gammas(0), *gammas(1)}) == 4


def test_a_parameter_that_others_use_is_copied_first() -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 17]>
        shared (float[n, 2] x) => (float[n, 2] y, float[n, 2] z)
        <float[2] one = {1, 1}, float[2] zero = {0, 0}>
        {
            [first] y = BatchNormalization(x, one, zero, zero, one)
            z = Mul(y, one)
        }
        """
    )
    rewrite = ConfigureBatchNorm(rules=rules(gamma_initializer=3, moving_mean_initializer=5))
    made, _ = apply_and_check(rewrite, model)
    found = parameters(made)
    assert {name: value.tolist() for name, value in found.items()} == {
        "one": [1, 1],
        "zero": [0, 0],
        "one/first": [3, 3],
        "zero/first": [5, 5],
    }
    (norm, _) = made.graph.node
    assert list(norm.input) == ["x", "one/first", "zero", "zero/first", "one"]


def test_a_dropped_parameter_is_a_constant_under_its_name() -> None:
    made, _ = apply_and_check(ConfigureBatchNorm(rules=rules(center=False)), MODEL)
    assert "b" not in parameters(made)
    assert [(node.op_type, list(node.output)) for node in made.graph.node] == [
        ("Constant", ["b"]),
        ("BatchNormalization", ["y"]),
    ]


def test_neutral_parameters_are_dropped_without_reset() -> None:
    neutral = dataclasses.replace(LAYER, scale=np.ones(3, np.float32), bias=np.zeros(3, np.float32))
    rewrite = ConfigureBatchNorm(rules=rules(reset=False, center=False, scale=False))
    apply_and_check(rewrite, batchnorm_model(neutral, ["n", 3, 4]), feeds={"x": X})


def test_the_first_rule_counts_and_goes_before_the_default() -> None:
    found = LayerRules(
        default=SyncBatchNormalizationOptions(momentum=0.5, epsilon=0.1),
        rules=(
            LayerRule(pattern="^a", options=SyncBatchNormalizationOptions(momentum=0.6)),
            LayerRule(pattern="b", options=SyncBatchNormalizationOptions(momentum=0.7)),
        ),
    )
    assert [found.of(name).momentum for name in ("ab", "b", "c")] == [0.6, 0.7, 0.5]
    assert found.of("ab").epsilon == 0.1


def test_excluded_nodes_keep_their_parameters_and_frozen_ones_take_them() -> None:
    model = onnx.load(DIGITS)
    made, result = apply_and_check(
        ConfigureBatchNorm(
            rules=rules(epsilon=0.5), exclude=("stem",), freeze=("hidden",), include=("stem|down",)
        ),
        model,
    )
    assert [record.node for record in result.records] == ["down_bn", "hidden_bn"]
    assert made.graph.node != model.graph.node


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"center": False}, "center=False changes the function, as beta 'b' is not 0"),
        ({"scale": False}, "scale=False changes the function, as gamma 's' is not 1"),
        ({"axis": -1}, "the numbers of channels differ: scale 3, B 3, input_mean 3, input_var 3, "
                       "axis -1 of the input 4"),
        ({"axis": 3}, "axis 3 is out of range for an input of rank 3"),
        ({"axis": -4}, "axis -4 is out of range for an input of rank 3"),
        ({"axis": 0}, "axis 0 is that of the samples"),
        ({"axis": -3}, "axis -3 is that of the samples"),
        ({"synchronized": False, "variance": "unbiased"}, "has no variance='unbiased'"),
        ({"synchronized": False, "group_size": 2}, "has no group_size"),
        ({"moving_variance_initializer": -1}, "gives a negative moving variance"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    parameters = SyncBatchNormalizationOptions(**options)
    with pytest.raises(ConversionError, match=r"^node 'norm': ") as caught:
        syncbn_convert.convert(MODEL, ConvertOptions(parameters=parameters))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axis": 2}, "pass --reset"),
        ({"axis": 2, "trainable": False}, "the node is frozen"),
        ({"axis": 2, "synchronized": False}, "the node is not synchronized"),
    ],
)
def test_another_axis_is_refused_where_it_cannot_be(options: dict[str, Any], message: str) -> None:
    model = batchnorm_model(LAYER, ["n", 3, 3])
    with pytest.raises(ConversionError, match=message):
        syncbn_convert.convert(
            model, ConvertOptions(parameters=SyncBatchNormalizationOptions(**options))
        )


def test_calls_of_one_layer_need_the_same_options() -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 17]>
        twice (float[n, 2] x) => (float[n, 2] z)
        <float[2] s = {1, 2}, float[2] b = {0, 1}, float[2] m = {0, 0}, float[2] v = {1, 1}>
        {
            [first] y = BatchNormalization(x, s, b, m, v)
            [second] z = BatchNormalization(y, s, b, m, v)
        }
        """
    )
    both = ConvertOptions(parameters=SyncBatchNormalizationOptions(gamma_initializer=2))
    form = syncbn_convert.convert(model, both)
    assert isinstance(form, onnx.ModelProto)
    np.testing.assert_array_equal(parameters(form)["s"], [2, 2])
    one = ConvertOptions(
        layers=(LayerRule(pattern="second", options=both.parameters),),
    )
    with pytest.raises(ConversionError, match="'first' and 'second' are one layer called twice"):
        syncbn_convert.convert(model, one)


@pytest.mark.parametrize("opset", [7, 17])
def test_nodes_without_a_name_are_told_apart(opset: int) -> None:
    model = onnx.parser.parse_model(
        f"""
        <ir_version: 8, opset_import: ["" : {opset}]>
        alike (float[n, 4, 5, 3] x) => (float[n, 4, 5, 3] z)
        <float[3] s = {{1, 2, 3}}, float[3] b = {{0, 1, 2}}, float[3] m = {{0, 0, 1}},
         float[3] v = {{1, 2, 1}}, float[3] p = {{2, 1, 1}}>
        {{
            y = BatchNormalization(x, s, b, m, v)
            z = BatchNormalization(y, p, b, v, s)
        }}
        """
    )
    parameters = SyncBatchNormalizationOptions(axis=-1, epsilon=0.5, gamma_regularizer=1)
    options = ConvertOptions(parameters=parameters, reset=True)
    for first, second in (("", ""), ("one", ""), ("one", "two")):
        model.graph.node[0].name, model.graph.node[1].name = first, second
        form, report = syncbn_convert.convert_with_report(model, options)
        assert isinstance(form, onnx.ModelProto)
        changes = [record.detail["changes"] for record in report.records]
        assert len(changes) == 2
        assert all("axis 1 -> -1, epsilon" in found[0] for found in changes)
        folded = syncbn_convert.fold(form)
        assert isinstance(folded, onnx.ModelProto)
        assert [output.name for output in folded.graph.output] == ["z"]


def test_what_a_dropped_parameter_was_given_is_said_to_be_ignored() -> None:
    given = rules(scale=False, gamma_regularizer=1, gamma_constraint="NonNeg")
    rewrite = ConfigureBatchNorm(rules=given)
    _, result = apply_and_check(rewrite, MODEL)
    assert "gamma regularizer, constraint ignored, as it is dropped" in result.records[0].reason
