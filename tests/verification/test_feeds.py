from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh
import onnx_ir as ir
import pytest

from syncbn_convert.errors import ModelFileError, UsageError, VerificationError
from syncbn_convert.verification import VerifyOptions
from syncbn_convert.verification.feeds import random_feed
from syncbn_convert.verification.interface import read_interface
from syncbn_convert.verification.model import open_model
from syncbn_convert.verification.runners import OnnxRuntime
from syncbn_convert.verification.runs import Run, collect_runs

from .samples import CONV_NET, GEMM_NET, compare, parse, save, shapes_of

POOLED = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N,3,H,W] x) => (float[N,K] y) <int64[2] shape, float[{rows},2] w> {{
  [pool] p = MaxPool<kernel_shape = [32, 32], strides = [32, 32]>(x)
  f = Reshape(p, shape)
  y = MatMul(f, w)
}}
"""


def runs_of(folder: Path, text: str, /, **options: Any) -> list[Run]:
    model = open_model(save(folder, model=parse(text))[0])
    return collect_runs(
        model.interface,
        OnnxRuntime(model.path),
        VerifyOptions(**options),
        [spec.name for spec in model.interface.outputs],
    )


def test_dynamic_dimensions_take_two_sizes_and_are_told_apart(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, CONV_NET, seeds=1)
    assert [shapes_of(run.feed.arrays) for run in runs] == [
        {"x": (2, 3, 32, 48)},
        {"x": (5, 3, 48, 64)},
    ]


def test_dimensions_of_one_name_have_one_size(tmp_path: Path) -> None:
    text = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N,L] a, float[L,M] b, float[N,M] c) => (float[N,M] y) { y = Gemm(a, b, c) }"""
    for run in runs_of(tmp_path, text):
        shapes = shapes_of(run.feed.arrays)
        assert shapes["a"][1] == shapes["b"][0]
        assert shapes["c"] == (shapes["a"][0], shapes["b"][1])


def test_sizes_are_tried_until_the_reference_runs(tmp_path: Path) -> None:
    model = parse(POOLED.format(rows=27), shape=np.array([-1, 27]))
    report = compare(tmp_path, model, model)
    assert report.equal
    opened = open_model(tmp_path / "reference.onnx")
    runs = collect_runs(opened.interface, OnnxRuntime(opened.path), VerifyOptions(seeds=1), ["y"])
    assert [run.feed.arrays["x"].shape for run in runs] == [(2, 3, 96, 96), (5, 3, 96, 96)]


def test_no_size_that_runs_asks_for_a_shape(tmp_path: Path) -> None:
    model = parse(POOLED.format(rows=33), shape=np.array([1, 33]))
    with pytest.raises(
        VerificationError, match=r"runs on no size .* give --input-shape x:DIMS"
    ) as e:
        compare(tmp_path, model, model)
    assert "\n" not in str(e.value)
    report = compare(tmp_path, model, model, input_shapes={"x": [1, 3, 32, 352]})
    assert report.equal
    assert report.runs == 2


def test_batch_of_one_is_the_last_resort(tmp_path: Path) -> None:
    text = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N,4] x) => (float[1,4] y) <int64[2] shape> { y = Reshape(x, shape) }"""
    model = parse(text, shape=np.array([1, 4]))
    report = compare(tmp_path, model, model)
    assert report.equal
    assert report.runs == 2


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": [1]}, "input shape for 'z': the model's inputs are"),
        ({"x": [1, 2]}, "another rank"),
        ({"x": [1, 4, 8, 8]}, "contradicts size 3"),
        ({"x": [1, 0, 8, 8]}, "size below 1"),
    ],
)
def test_shape_that_does_not_fit_is_a_usage_error(
    tmp_path: Path, shapes: dict[str, list[int]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        runs_of(tmp_path, CONV_NET, input_shapes=shapes)


def test_given_shape_binds_names_in_other_inputs(tmp_path: Path) -> None:
    text = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N,4] a, float[N,1] b) => (float[N,4] y) { y = Add(a, b) }"""
    runs = runs_of(tmp_path, text, input_shapes={"a": [7, 4]}, seeds=1)
    assert [shapes_of(run.feed.arrays) for run in runs] == [{"a": (7, 4), "b": (7, 1)}]


def test_values_depend_on_seed_and_name_and_suit_the_type(tmp_path: Path) -> None:
    text = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[2,500] a, float[2,500] b, int64[2,500] i, uint8[2,500] u, bool[2,500] f)
 => (float[2,500] y) { y = Add(a, b) }"""
    inputs = open_model(save(tmp_path, model=parse(text))[0]).interface.inputs
    shapes = {spec.name: (2, 500) for spec in inputs}
    first, again, other = (random_feed(inputs, shapes, seed).arrays for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)
    assert not np.array_equal(first["a"], first["b"])
    assert abs(float(first["a"].mean())) < 0.1
    assert set(np.unique(first["i"])) == {0, 1, 2, 3}
    assert first["u"].max() > 100
    assert first["f"].dtype == np.bool_


def test_floats_that_become_integers_are_whole(tmp_path: Path) -> None:
    text = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[2,500] tokens, float[2,500] x) => (int64[2,500] i, int32[2,500] j, float[2,500] y)
{ i = Cast<to = 7>(tokens)  j = Cast<to = 6>(tokens)  y = Add(x, x) }"""
    reference = save(tmp_path, model=parse(text))[0]
    inputs = open_model(reference).interface.inputs
    assert [spec.whole for spec in inputs] == [True, False]
    arrays = random_feed(inputs, {"tokens": (2, 500), "x": (2, 500)}, 0).arrays
    assert set(np.unique(arrays["tokens"])) == {0, 1, 2, 3}
    assert arrays["tokens"].dtype == np.float32
    assert len(np.unique(arrays["x"])) == 1000
    report = compare(tmp_path, parse(text), parse(text))
    assert report.equal
    assert not any("rounding errors alone" in note for note in report.notes)


@pytest.mark.parametrize(
    "cast", ['Cast<to = "FLOAT">(x)', "other.Cast(x)", "Cast<to = 1>(x)", "Identity(x)"]
)
def test_floats_that_become_nothing_else(tmp_path: Path, cast: str) -> None:
    text = f"""
<ir_version: 10, opset_import: ["" : 17, "other" : 1]>
g (float[2,5] x) => (y) {{ y = {cast} }}"""
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    [spec] = read_interface(ir.load(path)).inputs
    assert not spec.whole


def test_string_inputs_need_data(tmp_path: Path) -> None:
    text = """
<ir_version: 10, opset_import: ["" : 17]>
g (string[N] s) => (string[N] y) { y = Identity(s) }"""
    with pytest.raises(VerificationError, match="no random values can be made for this type"):
        runs_of(tmp_path, text)


def test_the_shape_of_an_input_without_one_is_that_of_the_weights(tmp_path: Path) -> None:
    model = parse(GEMM_NET)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert compare(tmp_path, model, model).equal


def test_input_without_a_shape_needs_one(tmp_path: Path) -> None:
    model = parse(GEMM_NET)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    del model.graph.node[0].input[2:]
    model.graph.node.insert(0, oh.make_node("Mul", ["x", "one"], ["x2"]))
    model.graph.initializer.append(onh.from_array(np.ones(64, np.float32), "one"))
    model.graph.node[1].input[0] = "x2"
    with pytest.raises(VerificationError, match="has no rank: give its shape with --input-shape x"):
        compare(tmp_path, model, model)
    assert compare(tmp_path, model, model, input_shapes={"x": [3, 64]}).equal


def test_data_is_run_beside_random_inputs(tmp_path: Path) -> None:
    samples = np.arange(20 * 64, dtype=np.float64).reshape(20, 64)
    np.savez(tmp_path / "data.npz", x=samples, label=np.zeros(20))
    runs = runs_of(tmp_path, GEMM_NET, data=tmp_path / "data.npz")
    assert ["data.npz" in run.feed.label for run in runs] == [True] * 2 + [False] * 3
    assert np.array_equal(runs[0].feed.arrays["x"], samples[:2].astype(np.float32))
    assert np.array_equal(runs[1].feed.arrays["x"], samples[2:7].astype(np.float32))


def test_data_finds_a_difference_that_random_inputs_miss(tmp_path: Path) -> None:
    text = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N] x) => (float[N] y) <float high> { y = Min(x, high) }"""
    models = parse(text, high=np.array(100.0)), parse(text, high=np.array(200.0))
    np.savez(tmp_path / "data.npz", x=np.array([1.0, 150.0], np.float32))
    assert compare(tmp_path, *models).equal
    assert not compare(tmp_path, *models, data=tmp_path).equal


def test_data_that_does_not_fit_is_a_usage_error(tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no \.npz file there"):
        runs_of(tmp_path, GEMM_NET, data=tmp_path / "empty")
    with pytest.raises(UsageError, match=r"no \.npz file there"):
        runs_of(tmp_path, GEMM_NET, data=data)
    np.savez(data, y=np.zeros((3, 64), np.float32))
    with pytest.raises(UsageError, match=r"data\.npz: no array for input 'x', only \['y'\]"):
        runs_of(tmp_path, GEMM_NET, data=data)
    np.savez(data, x=np.zeros((3, 64), np.int32))
    with pytest.raises(UsageError, match="array 'x' is int32"):
        runs_of(tmp_path, GEMM_NET, data=data)
    np.savez(data, x=np.zeros((3, 63), np.float32))
    with pytest.raises(UsageError, match="the model does not run on it"):
        runs_of(tmp_path, GEMM_NET, data=data)
    data.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ModelFileError, match=r"not an \.npz file"):
        runs_of(tmp_path, GEMM_NET, data=data)


@pytest.mark.parametrize(
    "options", [{"rtol": -1.0}, {"atol": float("nan")}, {"seeds": 0}, {"seed": -1}, {"timeout": 0}]
)
def test_options_out_of_range_are_usage_errors(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="give a"):
        VerifyOptions(**options)


def test_external_data_need_not_be_read_for_the_interface(tmp_path: Path) -> None:
    model = parse(GEMM_NET)
    ir.save(ir.from_proto(model), tmp_path / "e.onnx", external_data="e.data")
    (tmp_path / "e.data").unlink()
    assert open_model(tmp_path / "e.onnx").interface.inputs[0].name == "x"
