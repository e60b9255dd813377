"""Options that meet odd models: what used to be wrong, each once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper as onh
import onnx.parser
import onnx_ir as ir
import pytest

import syncbn_convert
from syncbn_convert import (
    CalibrateOptions,
    ConversionError,
    ConvertOptions,
    FoldOptions,
    LayerRule,
    ReplicaOptions,
    SyncBatchNormalizationOptions,
    UsageError,
    VerificationError,
)
from syncbn_convert.passes import ConfigureBatchNorm
from tests.harness import run
from tests.models import batchnorm_model, make_layer

O = SyncBatchNormalizationOptions  # noqa: E741

TWO = """
<ir_version: 10, opset_import: ["" : 17]>
two (float[n, 3, 4] x) => (float[n, 3, 4] y)
<float[3] s = {1, 2, 3}, float[3] b = {0.5, 1, 2}, float[3] m = {0, 0, 1}, float[3] v = {1, 2, 1},
 float[3] s2 = {2, 1, 1}, float[3] b2 = {1, 0, 1}, float[3] m2 = {0, 1, 0}, float[3] v2 = {2, 1, 1}>
{
    [one] t = BatchNormalization(x, s, b, m, v)
    [two] y = BatchNormalization(t, s2, b2, m2, v2)
}
"""


def two(**replaced: str) -> onnx.ModelProto:
    text = TWO
    for old, new in replaced.items():
        text = text.replace(old, new)
    return onnx.parser.parse_model(text)


def convert(model: onnx.ModelProto, options: ConvertOptions, **named: Any) -> onnx.ModelProto:
    form = syncbn_convert.convert(model, options, **named)
    assert isinstance(form, onnx.ModelProto)
    return form


def parameters(model: onnx.ModelProto) -> dict[str, Any]:
    return {t.name: onh.to_array(t).tolist() for t in model.graph.initializer}


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_calibration_with_groups_covers_all_samples(replicas: int, tmp_path: Path) -> None:
    form = convert(two(), ConvertOptions(parameters=O(group_size=1), include=("one",)))
    x = np.random.default_rng(0).normal(size=(8, 3, 4)).astype(np.float32)
    x[4:] += 5
    np.savez(tmp_path / "x.npz", x=x)
    options = CalibrateOptions(batch_size=8)
    where = ReplicaOptions(replicas=replicas)
    found = syncbn_convert.calibrate(form, tmp_path / "x.npz", options, replicas=where)
    assert isinstance(found, onnx.ModelProto)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(parameters(found)["m"], wide.mean(axis=(0, 2)), rtol=1e-6)
    np.testing.assert_allclose(parameters(found)["v"], wide.var(axis=(0, 2)), rtol=1e-6)
    if replicas > 1:
        moving = dataclasses.replace(options, method="moving")
        with pytest.raises(UsageError, match="groups of 1 replicas"):
            syncbn_convert.calibrate(form, tmp_path / "x.npz", moving, replicas=where)


@pytest.mark.parametrize("exclude", [(), ("two",)])
def test_verification_sees_what_no_option_asked_for(
    exclude: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ConfigureBatchNorm.call

    def wrong(self: ConfigureBatchNorm, model: Any) -> Any:
        result = right(self, model)
        value = model.graph.initializers["b2"]
        value.const_value = ir.tensor(np.full(3, 7, np.float32), name="b2")
        return result

    monkeypatch.setattr(ConfigureBatchNorm, "call", wrong)
    with pytest.raises(VerificationError, match="differs from its original"):
        convert(two(), ConvertOptions(parameters=O(momentum=0.5), exclude=exclude))


def test_a_second_conversion_adds_its_penalties() -> None:
    penalty = O(gamma_regularizer=0.1)
    first = convert(two(), ConvertOptions(parameters=penalty, include=("one",)))
    both = convert(first, ConvertOptions(parameters=penalty, include=("two",)))
    loss = run(both, {"x": np.ones((2, 3, 4), np.float32)})["regularization_loss"]
    assert loss == pytest.approx(0.1 * (1 + 4 + 9) + 0.1 * (4 + 1 + 1), rel=1e-6)
    assert len(both.graph.output) == 6


def test_a_second_constraint_on_one_parameter_is_refused() -> None:
    shared = two(**{"t, s2,": "t, s,"})
    first = convert(
        shared, ConvertOptions(parameters=O(gamma_constraint="NonNeg"), include=("one",))
    )
    with pytest.raises(ConversionError, match="by the constraint NonNeg already"):
        convert(first, ConvertOptions(parameters=O(gamma_constraint="UnitNorm"), include=("two",)))


def test_a_constraint_on_what_the_model_updates_itself_is_refused() -> None:
    model = two()
    entry = model.training_info.add()
    entry.algorithm.node.append(onnx.helper.make_node("Mul", ["s", "s"], ["s_new"]))
    entry.algorithm.output.append(onnx.helper.make_tensor_value_info("s_new", 1, [3]))
    entry.algorithm.name = "own"
    entry.update_binding.add(key="s", value="s_new")
    with pytest.raises(ConversionError, match="by the model's own training algorithm already"):
        convert(model, ConvertOptions(parameters=O(gamma_constraint="NonNeg")))


def test_an_overridable_parameter_takes_new_values_and_stays_overridable() -> None:
    model = two(**{"(float[n, 3, 4] x)": "(float[n, 3, 4] x, float[3] s, float[3] b)"})
    options = ConvertOptions(parameters=O(gamma_initializer=2, beta_initializer="ones"))
    form = convert(model, options)
    assert parameters(form)["s"] == [2, 2, 2]
    assert {"s", "b"} <= {value.name for value in form.graph.input}


@pytest.mark.parametrize(
    "selection", [{"include": ("b$",)}, {"exclude": ("a$",)}, {"freeze": ("a$",)}]
)
def test_an_axis_is_asked_only_of_selected_nodes(selection: dict[str, Any]) -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 17]>
        two (float[2, 3, 4, 5] x, float[2, 3, 3, 3] z) => (float[2, 3, 4, 5] y, float[2, 3, 3, 3] w)
        <float[3] s = {1, 2, 3}, float[3] b = {0.5, 1, 2}, float[3] m = {0, 0, 1},
         float[3] v = {1, 2, 1}, float[3] s2 = {2, 1, 1}, float[3] b2 = {1, 0, 1}>
        {
            [a] y = BatchNormalization(x, s, b, m, v)
            [b] w = BatchNormalization(z, s2, b2, m, v)
        }
        """
    )
    form = convert(model, ConvertOptions(parameters=O(axis=-1), reset=True, **selection))
    axes = {n.name: a.i for n in form.graph.node for a in n.attribute if a.name == "axis"}
    assert axes == {"b": -1}


@pytest.mark.parametrize("options", [{"freeze": ("one",)}, {"parameters": O(trainable=False)}])
def test_a_form_without_collectives_is_not_frozen_but_folded(options: dict[str, Any]) -> None:
    form = convert(two(), ConvertOptions(parameters=O(synchronized=False)))
    with pytest.raises(ConversionError, match="fold it first"):
        convert(form, ConvertOptions(**options))
    folded = syncbn_convert.fold(form)
    assert isinstance(folded, onnx.ModelProto)
    assert not folded.training_info
    assert [value.name for value in folded.graph.input] == ["x"]


def test_one_frozen_call_keeps_the_layer_as_it_is() -> None:
    model = two(**{"t, s2, b2, m2, v2": "t, s, b, m, v"})
    options = O(gamma_initializer="ones", momentum=0.5)
    with pytest.raises(ConversionError, match="none of the 2"):
        convert(model, ConvertOptions(parameters=options, exclude=("one",)))
    form, report = syncbn_convert.convert_with_report(
        model, ConvertOptions(parameters=options, freeze=("one",))
    )
    assert isinstance(form, onnx.ModelProto)
    assert [record.action for record in report.records] == ["frozen", "skipped"]
    assert parameters(form)["s"] == [1, 2, 3]


def test_statistics_of_a_half_synchronized_form_are_refused(tmp_path: Path) -> None:
    apart = LayerRule(pattern="two", options=O(synchronized=False))
    form = convert(two(), ConvertOptions(layers=(apart,)))
    path = tmp_path / "mixed.onnx"
    onnx.save(form, path)
    with pytest.raises(ConversionError, match="others, such as 'two', are not"):
        syncbn_convert.calibrate(str(path), tmp_path / "x.npz")
    folded = syncbn_convert.fold(form, FoldOptions())
    assert isinstance(folded, onnx.ModelProto)
    assert [node.op_type for node in folded.graph.node] == ["BatchNormalization"] * 2


def test_generated_node_names_are_new() -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 17]>
        names (float[2, 4, 3] x) => (float[2, 4, 3] y)
        <float[3] s = {1, 2, 3}, float[3] b = {0, 1, 2}, float[3] m = {0, 0, 1},
         float[3] v = {1, 2, 1}>
        {
            t = BatchNormalization(x, s, b, m, v)
            u = Relu(t)
            w = Relu(u)
            z = Relu(w)
            y = Relu(z)
        }
        """
    )
    names = ("bn", "bn/Mul", "bn/Add", "bn/channels_first", "regularization_loss/Sum")
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    form = convert(
        model, ConvertOptions(parameters=O(axis=-1, gamma_regularizer=1, center=False), reset=True)
    )
    for keep in (False, True):
        syncbn_convert.fold(form, FoldOptions(keep_batchnorm=keep))


@pytest.mark.parametrize(
    "options",
    [
        {"gamma_regularizer": 1e39},
        {"gamma_regularizer": 10**400},
        {"gamma_initializer": 10**400},
        {"gamma_constraint": {"class_name": "MaxNorm", "config": {"max_value": 1e39}}},
        {"epsilon": 10**400},
        {"momentum": 10**400},
        {"group_size": 10**20},
        {"axis": 10**19},
        {"beta_initializer": {"class_name": "RandomUniform", "config": {"maxval": 1e308}}},
        {"beta_initializer": {"class_name": "Constant", 1: 2}},
    ],
    ids=str,
)
def test_numbers_beyond_all_bounds_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        O(**options)


def test_values_beyond_the_parameters_type_are_refused() -> None:
    half = batchnorm_model(make_layer(3, dtype=np.float16), ["n", 3], dtype=np.float16)
    with pytest.raises(ConversionError, match="values beyond float16 for gamma"):
        convert(half, ConvertOptions(parameters=O(gamma_initializer=1e5)), verify=False)


@pytest.mark.parametrize(
    "options",
    [
        {"include": "one"},
        {"layers": LayerRule(pattern="a", options=O())},
        {"layers": ("o.toml",)},
        {"parameters": {"momentum": 0.5}},
        {"seed": -1},
    ],
    ids=str,
)
def test_other_types_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ConvertOptions(**options)
    with pytest.raises(UsageError):
        LayerRule(pattern="a", options={})  # type: ignore[arg-type]


def test_sizes_that_no_memory_holds_are_not_tried() -> None:
    model = two(**{"[n, 3, 4]": "[n, a, c, d, e]"})
    with pytest.raises(VerificationError, match="give --input-shape x:DIMS"):
        convert(model, ConvertOptions())
