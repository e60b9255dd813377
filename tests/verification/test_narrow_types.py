"""Models in float16, and in types that ONNX Runtime has no kernels for."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from syncbn_convert import convert_with_report
from syncbn_convert.cli.main import main

from .samples import parse

HEAD = '<ir_version: 10, opset_import: ["" : {opset}]>\ng '
BN = "T[4] s{0}, T[4] b{0}, T[4] m{0}, T[4] v{0}"
CONV = (
    "(T[N,3,H,16] x) => (T[N,4,H,16] y) <T[4,3,3,3] w, " + BN.format("") + "> {"
    "  c = Conv<pads = [1, 1, 1, 1]>(x, w)  [bn] y = BatchNormalization(c, s, b, m, v) }"
)
NETS = {
    "Conv": CONV,
    "static batch": CONV.replace("N,", "6,"),
    "MatMul": "(T[N,16] x) => (T[N,4] y) <T[16,4] w, " + BN.format("") + "> {"
    "  c = MatMul(x, w)  [bn] y = BatchNormalization(c, s, b, m, v) }",
    "Gemm": "(T[N,16] x) => (T[N,4] y) <T[16,4] w, " + BN.format("") + "> {"
    "  c = Gemm(x, w, b)  [bn] y = BatchNormalization(c, s, b, m, v) }",
    "sum of two": "(T[N,4,8,8] x) => (T[N,4,8,8] y) <T[4,4,1,1] w, " + BN.format("") + "> {"
    "  c = Conv(x, w)  a = Add(c, x)  [bn] y = BatchNormalization(a, s, b, m, v) }",
    "no layer before": "(T[N,4,8,8] x) => (T[N,4,8,8] y) <" + BN.format("") + "> {"
    "  [bn] y = BatchNormalization(x, s, b, m, v) }",
}
DEPTH = 17


def deep() -> str:
    declared = ", ".join(f"T[4,4,3,3] w{i}, " + BN.format(i) for i in range(DEPTH))
    body = "".join(
        f" c{i} = Conv<pads = [1, 1, 1, 1]>({f'r{i - 1}' if i else 'x'}, w{i}) "
        f" n{i} = BatchNormalization(c{i}, s{i}, b{i}, m{i}, v{i})  r{i} = Relu(n{i}) "
        for i in range(DEPTH)
    )
    return f"(T[N,4,8,8] x) => (T[N,4,8,8] y) <{declared}> {{ {body} y = Identity(r{DEPTH - 1}) }}"


def model(text: str, dtype: str, opset: int = 17) -> onnx.ModelProto:
    return parse(HEAD.format(opset=opset) + text.replace("T[", f"{dtype}["))


@pytest.mark.parametrize("opset", [17])
@pytest.mark.parametrize("text", NETS.values(), ids=NETS)
def test_float16_converts_within_what_float32_statistics_allow(text: str, opset: int) -> None:
    _, report = convert_with_report(model(text, "float16", opset))
    assert report.converted == 1
    assert report.max_relative_error is not None
    assert report.max_relative_error <= 4 * 2.0**-10
    assert not any("not run on replicas" in note for note in report.notes)


def test_deep_net_in_float16_converts() -> None:
    _, report = convert_with_report(model(deep(), "float16"))
    assert report.converted == DEPTH


@pytest.mark.parametrize("opset", [13, 22])
@pytest.mark.parametrize("dtype", ["bfloat16", "double"])
@pytest.mark.parametrize("name", ["Conv", "MatMul"])
def test_type_without_a_kernel_converts_or_says_why_in_one_line(
    name: str, dtype: str, opset: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = model(NETS[name], dtype, opset)
    onnx.save(made, tmp_path / "m.onnx")
    if main(["convert", str(tmp_path / "m.onnx")]):
        told = capsys.readouterr().err
        assert "Traceback" not in told
        assert "bug" not in told
        return
    _, report = convert_with_report(made)
    assert report.max_relative_error is not None
    assert report.max_relative_error <= (2.0**-7 if dtype == "bfloat16" else 1e-12)
