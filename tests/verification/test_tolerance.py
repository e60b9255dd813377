from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from syncbn_convert.verification import VerifyOptions, base_tolerance
from syncbn_convert.verification.float64_twin import NoTwinError, build_twin
from syncbn_convert.verification.model import open_model
from syncbn_convert.verification.noise import measure_noise, perturbation_noise, twin_noise
from syncbn_convert.verification.runners import OnnxRuntime
from syncbn_convert.verification.runs import collect_runs
from syncbn_convert.verification.tolerance import reduction_size, tolerance_for

from .samples import CONV_NET, GEMM_NET, WORDS_WITH_FUNCTION, compare, parse, save, scaled


def test_base_tolerance_follows_its_formula() -> None:
    assert base_tolerance(np.dtype(np.float32), 1) == 4 * 2.0**-23
    assert base_tolerance(np.dtype(np.float32), 4096) == 4 * 64 * 2.0**-23
    assert base_tolerance(np.dtype(np.float64), 4) == 4 * 2 * 2.0**-52
    assert base_tolerance(np.dtype(np.float16), 4096) == 4 * 2.0**-10
    assert base_tolerance(np.dtype(ml_dtypes.bfloat16), 4096) == 4 * 2.0**-7


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        (CONV_NET, 27),
        (GEMM_NET, 64),
        (GEMM_NET.replace("Gemm(x, w, b)", "MatMul(x, w)"), 64),
        (
            GEMM_NET.replace("Gemm(x", "Gemm<transB = 1>(x").replace(
                "float[64,8] w", "float[8,64] w"
            ),
            64,
        ),
        (CONV_NET.replace("Conv<pads", "ConvTranspose<pads"), 36),
        (WORDS_WITH_FUNCTION, 1),
    ],
)
def test_reduction_size_is_read_from_the_weights(text: str, terms: int) -> None:
    assert reduction_size(ir.from_proto(parse(text))) == terms


def test_reduction_size_of_weights_filled_by_constant_of_shape() -> None:
    text = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N,3,8,8] x) => (float[N,2,4,4] y) <int64[4] shape> {
  w = ConstantOfShape(shape)
  y = Conv(x, w)
}"""
    assert reduction_size(ir.from_proto(parse(text, shape=np.array([2, 3, 5, 5])))) == 75


def test_least_precise_type_of_the_model_decides() -> None:
    full = tolerance_for(ir.from_proto(parse(GEMM_NET)), rtol=None, atol=None)
    half = tolerance_for(ir.from_proto(parse(WORDS_WITH_FUNCTION)), rtol=None, atol=None)
    output = np.array([0.5, -2.0], np.float32)
    assert full.allowed(output, 0.0) == 2 * base_tolerance(np.dtype(np.float32), 64)
    assert half.allowed(output, 0.0) == 2 * base_tolerance(np.dtype(np.float16), 1)
    assert full.allowed(output, 1.0) == 8.0
    assert full.allowed(np.array([3]), 1.0) == 0.0


def test_given_tolerances_add_up() -> None:
    model = ir.from_proto(parse(GEMM_NET))
    output = np.array([0.5, -2.0, math.nan, math.inf], np.float32)
    assert tolerance_for(model, rtol=0.1, atol=None).allowed(output, 1.0) == 0.2
    assert tolerance_for(model, rtol=None, atol=0.1).allowed(output, 1.0) == 0.1
    assert tolerance_for(model, rtol=0.25, atol=0.5).allowed(output, 1.0) == 1.0


def test_float64_twin_tells_the_error_of_a_gemm_net(tmp_path: Path) -> None:
    model = open_model(save(tmp_path, model=parse(GEMM_NET))[0])
    runner = OnnxRuntime(model.path)
    runs = collect_runs(model.interface, runner, VerifyOptions(), ["y"])
    noises, by_twin = measure_noise(model, runner, runs, lambda _m, _a: None, twin=True)
    assert by_twin
    weights = {t.name: t.const_value for t in model.model.graph.initializers.values()}
    arrays = {n: t.numpy().astype(np.float64) for n, t in weights.items() if t is not None}
    for run, noise in zip(runs, noises, strict=True):
        x = run.feed.arrays["x"].astype(np.float64)
        exact = np.tanh(x @ arrays["w"] + arrays["b"])
        assert noise["y"] == pytest.approx(np.abs(run.outputs["y"] - exact).max(), rel=1e-6)


def test_twin_tells_of_an_error_that_perturbation_underrates(tmp_path: Path) -> None:
    text = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,4] y) <float k> { d = Add(x, k)  y = Sub(d, k) }"""
    model = open_model(save(tmp_path, model=parse(text, k=np.array(2.0**23)))[0])
    runner = OnnxRuntime(model.path)
    runs = collect_runs(model.interface, runner, VerifyOptions(seeds=1), ["y"])
    twin = twin_noise(model, runs)
    assert twin is not None
    assert twin[0]["y"] > 0.1
    assert perturbation_noise(model, runner, runs)[0]["y"] < twin[0]["y"]


def test_comparison_says_that_a_twin_was_used(tmp_path: Path) -> None:
    model = parse(GEMM_NET)
    other = scaled(model, "w", 1.001)
    assert compare(tmp_path, model, other).notes == [
        "tolerance from the error against a float64 twin"
    ]
    assert compare(tmp_path, model, model).notes == []
    assert compare(tmp_path, model, other, rtol=1e-3).notes == []


def test_twin_follows_bodies_functions_and_casts(tmp_path: Path) -> None:
    proto = parse(WORDS_WITH_FUNCTION)
    model = open_model(save(tmp_path, model=proto)[0])
    before = ir.to_proto(model.model).SerializeToString()
    twin = OnnxRuntime(build_twin(model.model))
    assert ir.to_proto(model.model).SerializeToString() == before
    x = np.random.default_rng(0).standard_normal((3, 4))
    weight = model.model.graph.initializers["w"].const_value
    assert weight is not None
    product = x * weight.numpy().astype(np.float64) * float(np.float32(0.1))
    k = np.array([0.5, 0.25, 0.125, 2.0])
    for flag, expected in ((True, product + k), (False, product * k)):
        (y,) = twin.run({"x": x, "flag": np.array(flag)}, ["y"]).values()
        assert y.dtype == np.float64
        assert np.abs(y - expected).max() < 1e-15


def test_half_precision_shows_in_the_noise(tmp_path: Path) -> None:
    model = open_model(save(tmp_path, model=parse(WORDS_WITH_FUNCTION))[0])
    runner = OnnxRuntime(model.path)
    runs = collect_runs(model.interface, runner, VerifyOptions(seeds=1), ["y"])
    noises = twin_noise(model, runs)
    assert noises is not None
    assert 1e-5 < noises[0]["y"] < 4e-3


@pytest.mark.parametrize(
    "text",
    [
        CONV_NET,
        """
<ir_version: 10, opset_import: ["" : 17]>
g (int64[N] x) => (int64[N] y) { y = Neg(x) }""",
        """
<ir_version: 10, opset_import: ["" : 17, "local" : 1]>
g (float[N] x) => (float[N] y) { y = local.cast<type = 1>(x) }
<domain: "local", opset_import: ["" : 17]>
cast <type> (u) => (o) { o = Cast<to: int = @type>(u) }""",
    ],
)
def test_what_cannot_be_cast_has_no_twin(text: str) -> None:
    with pytest.raises(NoTwinError):
        build_twin(ir.from_proto(parse(text)))


def test_operator_that_insists_on_float32_falls_back_on_perturbation(tmp_path: Path) -> None:
    text = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N,4] x) => (uint8[N,4] y, float s, uint8 z) { y, s, z = DynamicQuantizeLinear(x) }"""
    model = open_model(save(tmp_path, model=parse(text))[0])
    runner = OnnxRuntime(model.path)
    runs = collect_runs(model.interface, runner, VerifyOptions(seeds=4), ["s"])
    noises, by_twin = measure_noise(model, runner, runs, lambda _m, _a: None, twin=True)
    assert not by_twin
    assert 0 < max(noise["s"] for noise in noises) < 1e-6
