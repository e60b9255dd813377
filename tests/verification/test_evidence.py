"""What a comparison proves: randomness, constant outputs, NaN and tolerances that hide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from syncbn_convert.verification import base_tolerance
from syncbn_convert.verification.tolerance import tolerance_for

from .samples import compare, parse, scaled

HEAD = '<ir_version: 10, opset_import: ["" : 17]>\n'
SINGLE = base_tolerance(np.dtype(np.float32), 16)

DROPOUT = (
    HEAD
    + """
g (float[N,16] x) => (float[N,4] y) <float[16,4] w, float ratio, bool mode> {
  h = MatMul(x, w)
  [drop] y = Dropout(h, ratio, mode)
}"""
)

MASKS = {
    "Bernoulli": "p = Expand(keep, s)  b = Bernoulli(p)  n = Div(b, keep)  y = Mul(h, n)",
    "uniform below": "u = RandomUniformLike(h)  b = Less(u, keep)  m = Cast<to = 1>(b)"
    "  n = Div(m, keep)  y = Mul(n, h)",
    "uniform above": "u = RandomUniformLike(h)  b = GreaterOrEqual(u, drop)"
    "  g = Div(h, keep)  m = Cast<to = 1>(b)  y = Mul(g, m)",
    "floor": "u = RandomUniformLike(h)  a = Add(u, keep)  m = Floor(a)  g = Div(h, keep)"
    "  y = Mul(g, m)",
    "divided after": "u = RandomUniformLike(h)  a = Add(u, keep)  m = Floor(a)  g = Mul(h, m)"
    "  y = Div(g, keep)",
    "where": "u = RandomUniformLike(h)  b = Less(u, keep)  g = Div(h, keep)  y = Where(b, g, zero)",
}
MASKED = (
    HEAD
    + """
g (float[N,16] x) => (float[N,4] y) <float[16,4] w, float keep, float drop, float zero> {
  h = MatMul(x, w)
  s = Shape(h)
  BODY
}"""
)
MASK_VALUES = {"keep": np.array(0.75), "drop": np.array(0.25), "zero": np.array(0.0)}

DRAWS = {
    "RandomNormalLike": "r = RandomNormalLike(h)  y = Add(h, r)",
    "RandomUniformLike": "r = RandomUniformLike(h)  y = Add(h, r)",
    "RandomNormal": "r = RandomNormal<shape = [4]>()  y = Add(h, r)",
    "RandomUniform": "r = RandomUniform<shape = [4]>()  y = Mul(h, r)",
    "Bernoulli": "p = Sigmoid(h)  r = Bernoulli(p)  y = Mul(h, r)",
    "Multinomial": "r = Multinomial<sample_size = 4>(h)  y = Cast<to = 1>(r)",
    "mask without division": "r = RandomUniformLike(h)  b = Less(r, keep)  m = Cast<to = 1>(b)"
    "  y = Mul(h, m)",
}


def masked(body: str) -> onnx.ModelProto:
    return parse(MASKED.replace("BODY", body), 0, **MASK_VALUES)


def dropout() -> onnx.ModelProto:
    return parse(DROPOUT, ratio=np.array(0.5), mode=np.array(True))


@pytest.mark.parametrize("model", [dropout(), *map(masked, MASKS.values())], ids=["drop", *MASKS])
def test_randomness_of_training_is_switched_off_in_both(
    tmp_path: Path, model: onnx.ModelProto
) -> None:
    same = compare(tmp_path, model, model)
    assert same.equal
    assert same.tolerance <= 8 * SINGLE
    assert same.notes[0].startswith("compared with dropout and stochastic depth switched off: ")
    for factor in (-3.0, 1.001):
        other = compare(tmp_path, model, scaled(model, "w", factor))
        assert other.differs
        assert other.max_relative_error == pytest.approx(abs(factor - 1), rel=1e-2)


def test_dropout_that_a_caller_switches_is_compared_off(tmp_path: Path) -> None:
    text = DROPOUT.replace("float[N,16] x)", "float[N,16] x, bool mode)").replace(
        ", bool mode>", ">"
    )
    model = parse(text, ratio=np.array(0.5))
    assert compare(tmp_path, model, model).equal
    assert compare(tmp_path, model, scaled(model, "w", 1.01)).differs


@pytest.mark.parametrize("body", DRAWS.values(), ids=DRAWS)
def test_random_numbers_that_stay_prove_nothing(tmp_path: Path, body: str) -> None:
    model = masked(body)
    for candidate in (model, scaled(model, "w", -3.0)):
        report = compare(tmp_path, model, candidate)
        assert not report.equal
        assert not report.differs
        assert report.unproven == ["y"]
        assert any("nothing is proven: node '" in note for note in report.notes)
        assert "draws random numbers" in str(report.first_difference)


def test_outputs_that_randomness_does_not_reach_are_compared(tmp_path: Path) -> None:
    text = MASKED.replace("=> (float[N,4] y)", "=> (float[N,4] y, float[N,4] h, int64[2] s)")
    model = parse(text.replace("BODY", DRAWS["RandomNormalLike"]), 0, **MASK_VALUES)
    report = compare(tmp_path, model, model)
    assert [output.equal for output in report.outputs] == [False, True, True]
    assert report.unproven == ["y"]
    other = compare(tmp_path, model, scaled(model, "w", 1.01))
    assert other.differs
    assert str(other.first_difference).startswith("node 'MatMul(h)'")


def test_random_numbers_in_functions_and_bodies_are_seen(tmp_path: Path) -> None:
    function = parse("""
<ir_version: 10, opset_import: ["" : 17, "local" : 1]>
g (float[N,4] x) => (float[N,4] y) { y = local.noisy(x) }
<domain: "local", opset_import: ["" : 17]>
noisy (u) => (o) { r = RandomNormalLike(u)  o = Add(u, r) }""")
    body = parse(
        HEAD
        + """
g (float[N,4] x, bool flag) => (float[N,4] y) {
  y = If(flag) <
    then_branch = t () => (float[N,4] a) { r = RandomNormalLike(x)  a = Add(x, r) },
    else_branch = e () => (float[N,4] b) { b = Identity(x) }
  >
}"""
    )
    for model in (function, body):
        assert compare(tmp_path, model, model).unproven == ["y"]


STORED = {
    "float16 cast": "float16[16,4] w",
    "bfloat16 cast": "bfloat16[16,4] w",
    "float8 cast": "float8e4m3fn[16,4] w",
    "float8 of two bits": "float8e5m2[16,4] w",
}


@pytest.mark.parametrize("declared", STORED.values(), ids=STORED)
@pytest.mark.parametrize("way", ["Cast<to = 1>(w)", "Cast<to = 1>(t)"])
def test_type_that_weights_are_stored_in_gives_no_tolerance(
    tmp_path: Path, declared: str, way: str
) -> None:
    text = (
        HEAD.replace("17", "19")
        + f"""
g (float[N,16] x) => (float[N,4] y) <{declared}, float[4] gamma> {{
  t = Identity(w)  f = {way}  h = MatMul(x, f)  y = Mul(h, gamma)
}}"""
    )
    model = parse(text)
    assert tolerance_for(ir.from_proto(model), rtol=None, atol=None).dtypes == {
        np.dtype(np.float32)
    }
    assert compare(tmp_path, model, model).tolerance <= 8 * SINGLE
    assert compare(tmp_path, model, scaled(model, "gamma", 1.001)).differs


def test_integer_table_gives_no_tolerance(tmp_path: Path) -> None:
    model = parse(
        HEAD
        + """
g (float[N,16] x) => (float[N,4] y) <int8[16,4] w, float scale, float[4] gamma> {
  f = DequantizeLinear(w, scale)  h = MatMul(x, f)  y = Mul(h, gamma)
}""",
        w=np.arange(64).reshape(16, 4),
    )
    assert compare(tmp_path, model, scaled(model, "gamma", 1.001)).differs


def test_type_that_is_calculated_in_counts() -> None:
    half, single = np.dtype(np.float16), np.dtype(np.float32)
    body = "c = Cast<to = 10>(x)  h = MatMul(c, w)  y = Cast<to = 1>(h)"
    calculated = parse(HEAD + f"g (float[N,16] x) => (float[N,4] y) <float16[16,4] w> {{ {body} }}")
    rounded = parse(
        HEAD + "g (float[N] x) => (float[N] y) { c = Cast<to = 16>(x)  y = Cast<to = 1>(c) }"
    )
    cases: list[tuple[onnx.ModelProto, set[np.dtype[Any]]]] = [
        (calculated, {half, single}),
        (rounded, {np.dtype(ml_dtypes.bfloat16), single}),
    ]
    for model, expected in cases:
        tolerance = tolerance_for(ir.from_proto(model), rtol=None, atol=None)
        assert set(tolerance.dtypes) | {single} == expected


@pytest.mark.parametrize(
    ("body", "note"),
    [
        ("n = Sub(x, x)  y = Div(n, n)", "NaN everywhere, on both sides"),
        ("n = Sub(x, x)  o = Exp(n)  y = Div(o, n)", "not finite everywhere, on both sides"),
        ("n = Sub(x, x)  y = Exp(n)", "the same for all inputs that were tried"),
        ("s = Slice(x, end, end)  y = Neg(s)", "holds no element in any run"),
    ],
)
def test_output_that_says_nothing_is_noted(tmp_path: Path, body: str, note: str) -> None:
    model = parse(
        HEAD + f"g (float[N,4] x) => (float[N,M] y) <int64[1] end> {{ {body} }}",
        end=np.array([9]),
    )
    report = compare(tmp_path, model, model)
    assert report.equal
    assert any(note in text for text in report.notes), report.notes


def test_tolerance_beyond_a_hundredth_of_the_range_is_noted(tmp_path: Path) -> None:
    text = (
        HEAD
        + "g (float[N,4] x) => (float[N,4] y) <float k, float s> { m = Mul(x, s)  y = Add(m, k) }"
    )
    model = parse(text, k=np.array(1.0), s=np.array(1e-6))
    (note,) = [text for text in compare(tmp_path, model, model).notes if "% of its range" in text]
    assert note.startswith("output 'y': the tolerance is ")
    wide = parse(text, k=np.array(0.0), s=np.array(1.0))
    assert not any("% of its range" in text for text in compare(tmp_path, wide, wide).notes)
    given = compare(tmp_path, wide, wide, rtol=0.5)
    assert given.equal
    assert any("% of its range" in text for text in given.notes)


def test_tolerance_as_large_as_the_range_proves_nothing(tmp_path: Path) -> None:
    text = HEAD + "g (float[N,4] x) => (float[N,4] y) <float k> { m = Add(x, k)  y = Sub(m, k) }"
    model = parse(text, k=np.array(2e7))
    same = parse(HEAD + "g (float[N,4] x) => (float[N,4] y) { y = Identity(x) }")
    report = compare(tmp_path, model, same)
    assert not report.equal
    assert report.unproven == ["y"]
