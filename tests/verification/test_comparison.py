from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from syncbn_convert.errors import ModelFileError, UsageError, VerificationError

from .samples import CONV_NET, GEMM_NET, compare, parse, save, scaled

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def test_equal_models_pass_at_two_sizes_and_two_seeds_and_with_an_overridden_scale(
    tmp_path: Path,
) -> None:
    model = parse(CONV_NET)
    report = compare(tmp_path, model, model)
    assert report.equal
    assert report.runs == 3 + 1
    assert report.max_relative_error == 0.0
    assert 0 < report.tolerance < 1e-4
    assert report.first_difference is None
    assert report.notes == []
    assert [(output.name, output.equal) for output in report.outputs] == [("y", True)]


def test_weight_changed_by_a_thousandth_is_found_and_its_node_named(tmp_path: Path) -> None:
    model = parse(CONV_NET)
    report = compare(tmp_path, model, scaled(model, "w2", 1.001))
    assert not report.equal
    assert report.max_relative_error == pytest.approx(1e-3, rel=1e-2)
    assert report.first_difference == "node 'conv2' (Conv), output 'y': 1.0e-03 relative"


def test_first_differing_node_is_named_though_later_ones_differ_too(tmp_path: Path) -> None:
    model = parse(CONV_NET)
    report = compare(tmp_path, model, scaled(scaled(model, "w2", 1.1), "w1", 1.001))
    assert report.first_difference is not None
    assert report.first_difference.startswith("node 'conv1' (Conv), output 'c1': 1.0e-03")


def test_node_without_a_name_is_named_by_operator_and_output(tmp_path: Path) -> None:
    model = parse(CONV_NET.replace("[conv1] ", ""))
    report = compare(tmp_path, model, scaled(model, "w1", 1.001))
    assert report.first_difference is not None
    assert report.first_difference.startswith("node 'Conv(c1)' (Conv), output 'c1'")


def test_output_is_named_where_no_common_value_differs(tmp_path: Path) -> None:
    model = parse("""
<ir_version: 10, opset_import: ["" : 17]>
g (float[N] x, float[1] k) => (float[N] x2, float[1] k2) <float[1] k> {
  x2 = Identity(x)
  k2 = Identity(k)
}""")
    candidate = parse("""
<ir_version: 10, opset_import: ["" : 17]>
g (float[N] x, float[1] k) => (float[N] x2, float[1] k2) <float[1] k> {
  x2 = Identity(x)
  k2 = Neg(k)
}""")
    report = compare(tmp_path, model, candidate)
    assert (
        report.first_difference == "node 'Identity(k2)' (Identity), output 'k2': 2.0e+00 relative"
    )
    assert [output.equal for output in report.outputs] == [True, False]


def test_candidate_that_folded_an_overridable_initializer_is_found(tmp_path: Path) -> None:
    model = parse(CONV_NET)
    folded = onnx.ModelProto.FromString(model.SerializeToString())
    frozen = folded.graph.initializer.add()
    frozen.CopyFrom(next(t for t in folded.graph.initializer if t.name == "scale"))
    frozen.name = "scale.folded"
    folded.graph.node[1].input[1] = "scale.folded"
    report = compare(tmp_path, model, folded)
    assert not report.equal
    assert report.first_difference is not None
    assert report.first_difference.startswith("node 'bn1' (BatchNormalization)")


def test_initializer_that_only_one_model_lets_override_is_no_difference(tmp_path: Path) -> None:
    candidate = parse(CONV_NET)
    del candidate.graph.input[1]
    report = compare(tmp_path, parse(CONV_NET), candidate)
    assert report.equal
    assert report.runs == 3


def test_nan_and_infinity_must_sit_in_the_same_places(tmp_path: Path) -> None:
    text = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[2,3] x) => (float[2,3] y) <float[3] k> {
  zero = Sub(x, x)
  [div] y = Div(k, zero)
}"""
    infinite = parse(text, k=np.array([1.0, 1.0, -1.0]))
    assert compare(tmp_path, infinite, infinite).equal
    for k, detail in (
        ([1.0, 0.0, -1.0], "NaN only in the candidate, at [0, 1]"),
        ([1.0, -1.0, -1.0], "infinity only in the reference, at [0, 1]"),
        ([1.0, 1.0, 1.0], "infinity only in the candidate, at [0, 2]"),
    ):
        report = compare(tmp_path, infinite, parse(text, k=np.array(k)))
        assert not report.equal
        assert report.outputs[0].detail == detail
        assert report.first_difference == f"node 'div' (Div), output 'y': {detail}"


def test_integer_outputs_must_be_equal(tmp_path: Path) -> None:
    text = """
<ir_version: 10, opset_import: ["" : 17]>
g (int64[N,M] x, bool[N] b) => (int64[N,M] y, bool[N] c) <int64 k> {
  [add] y = Add(x, k)
  c = Not(b)
}"""
    model = parse(text, k=np.array(2**60))
    assert compare(tmp_path, model, model).equal
    report = compare(tmp_path, model, parse(text, k=np.array(2**60 + 1)))
    assert not report.equal
    assert report.outputs[0].max_absolute_error == 1.0
    assert report.outputs[1].equal
    assert report.first_difference is not None
    assert report.first_difference.startswith("node 'add' (Add), output 'y'")


def test_zero_tolerances_ask_for_the_same_bits(tmp_path: Path) -> None:
    text = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N,64] x) => (float[N,64] y) <float[64] a, float[64] b> {
  [mul] h = Mul(x, a)
  y = Mul(h, b)
}"""
    model = parse(text)
    regrouped = parse(text.replace("Mul(x, a)", "Mul(a, b)").replace("(h, b)", "(x, h)"))
    assert compare(tmp_path, model, regrouped).equal
    assert compare(tmp_path, model, model, rtol=0.0, atol=0.0).equal
    for rtol, atol in ((0.0, 0.0), (0.0, None), (None, 0.0)):
        report = compare(tmp_path, model, regrouped, rtol=rtol, atol=atol)
        assert not report.equal
        assert report.tolerance == 0.0
        assert 0 < report.max_relative_error < 3e-7


def test_given_tolerances_replace_the_derived_one(tmp_path: Path) -> None:
    model = parse(CONV_NET)
    candidate = scaled(model, "w2", 1.001)
    assert compare(tmp_path, model, candidate, rtol=2e-3).equal
    assert not compare(tmp_path, model, candidate, rtol=5e-4).equal
    largest = compare(tmp_path, model, candidate).outputs[0].max_absolute_error
    assert compare(tmp_path, model, candidate, atol=largest * 1.01).equal
    assert not compare(tmp_path, model, candidate, atol=largest * 0.99).equal


def test_size_that_only_the_candidate_refuses_is_a_difference(tmp_path: Path) -> None:
    model = parse(CONV_NET)
    candidate = parse(
        CONV_NET.replace("y = Conv(r1, w2)", "z = Conv(r1, w2)\n y = Reshape(z, shape)").replace(
            "float[2,4,1,1] w2>", "float[2,4,1,1] w2, int64[4] shape>"
        ),
        shape=np.array([2, 2, 32, 48]),
    )
    report = compare(tmp_path, model, candidate)
    assert not report.equal
    assert report.runs == 2
    assert report.first_difference is not None
    assert report.first_difference.startswith(
        "the candidate does not run on x[5,3,48,64], seed 0: "
    )


@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [
        ("float[N,64] x", "float[N,64] x, float[N] z", "inputs: the candidate has 'z' besides"),
        ("[N,64] x", "[2,64] x", "input 'x' float[N,64] of the reference is 'x' float[2,64] in"),
        ("float[N,8] y)", "float[N,8] y, float[N,8] h)", "outputs: the candidate has 'h' besides"),
        ("[N,8] y", "[N,4,2] y", "output 'y' float[N,8] of the reference is 'y' float[N,4,2] in"),
        ("float[N,8] y", "double[N,8] y", "output 'y' float[N,8] of the reference is 'y' double"),
    ],
)
def test_interface_difference_is_told_without_running(
    tmp_path: Path, before: str, after: str, difference: str
) -> None:
    report = compare(tmp_path, parse(GEMM_NET), parse(GEMM_NET.replace(before, after)))
    assert not report.equal
    assert report.runs == 0
    assert report.first_difference is not None
    assert report.first_difference.startswith(f"interface: {difference}")


def test_order_of_inputs_and_lacking_ones_are_differences(tmp_path: Path) -> None:
    text = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N] a, float[N] b) => (float[N] y) { y = Add(a, b) }"""
    model = parse(text)
    swapped = compare(tmp_path, model, parse(text.replace("N] a, float[N] b", "N] b, float[N] a")))
    assert swapped.first_difference == "interface: inputs: the candidate has another order"
    short = compare(
        tmp_path, model, parse(text.replace(", float[N] b", "").replace("(a, b)", "(a, a)"))
    )
    assert short.first_difference == "interface: inputs: the candidate lacks 'b'"


def test_only_the_outputs_asked_for_are_compared(tmp_path: Path) -> None:
    model = parse(GEMM_NET.replace("float[N,8] y)", "float[N,8] y, float[N,8] h)"))
    candidate = parse(GEMM_NET)
    assert not compare(tmp_path, model, candidate).equal
    report = compare(tmp_path, model, candidate, outputs=["y"])
    assert report.equal
    assert [output.name for output in report.outputs] == ["y"]
    with pytest.raises(UsageError, match="output 'q': the reference has only 'y', 'h'"):
        compare(tmp_path, model, candidate, outputs=["q"])


def test_bfloat16_runs_on_the_reference_evaluator(tmp_path: Path) -> None:
    model = parse("""
<ir_version: 10, opset_import: ["" : 22]>
g (bfloat16[N,3,8,8] x) => (bfloat16[N,4,6,6] y)
<bfloat16[4,3,3,3] w, bfloat16[4] s, bfloat16[4] b, bfloat16[4] m, bfloat16[4] v> {
  [conv] c = Conv(x, w)
  [bn] y = BatchNormalization(c, s, b, m, v)
}""")
    report = compare(tmp_path, model, model)
    assert report.equal
    assert report.notes[0].startswith("compared on onnx's reference evaluator, not ONNX Runtime")
    report = compare(tmp_path, model, scaled(model, "w", 2.0))
    assert report.first_difference is not None
    assert report.first_difference.startswith("node 'conv' (Conv), output 'c': 1.0e+00")


def test_float64_convolution_runs_on_the_reference_evaluator(tmp_path: Path) -> None:
    model = parse(CONV_NET.replace("float[", "double["))
    report = compare(tmp_path, model, model)
    assert report.equal
    assert "NOT_IMPLEMENTED" in report.notes[0]
    assert report.tolerance < 1e-12
    assert not compare(tmp_path, model, scaled(model, "w1", 1 + 1e-9)).equal


def test_normalization_that_the_reference_evaluator_gets_wrong_is_not_compared(
    tmp_path: Path,
) -> None:
    model = parse(CONV_NET.replace("float[", "double[").replace(": 17", ": 9"))
    with pytest.raises(
        VerificationError, match=r"below opset 14; raise the opset, or pass --no-ver"
    ):
        compare(tmp_path, model, model)


def test_model_that_onnx_runtime_refuses_is_an_error_of_one_line(tmp_path: Path) -> None:
    model = parse(GEMM_NET)
    broken = parse(GEMM_NET.replace("float[64,8] w", "float[63,8] w"))
    with pytest.raises(
        VerificationError, match=r"candidate\.onnx: ONNX Runtime cannot load it"
    ) as e:
        compare(tmp_path, model, broken)
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 700


def test_file_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    (path,) = save(tmp_path, reference=parse(GEMM_NET))
    path.write_bytes(b"not a model")
    from syncbn_convert.verification.model import open_model

    with pytest.raises(ModelFileError, match=r"reference\.onnx: cannot be read as an ONNX model"):
        open_model(path)


def test_noise_that_hides_errors_is_noted(tmp_path: Path) -> None:
    text = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N,4,16,16] x) => (float[N,4,16,16] y, int64[N,4,16] i) <float[4,4,1,1] w, float k> {
  big = Add(x, k)
  c = Conv(big, w)
  m = ReduceMean<axes = [2, 3]>(c)
  y = Sub(c, m)
  i = ArgMax<axis = 3, keepdims = 0>(y)
}"""
    model = parse(text, k=np.array(2e6))
    assert compare(tmp_path, model, model).notes == []
    report = compare(tmp_path, model, scaled(model, "w", 1.0001))
    assert "output 'y': rounding errors alone move it by" in report.notes[0]
    assert report.notes[1] == "output 'i': rounding errors alone change its integers"
    assert compare(tmp_path, parse(text, k=np.array(0.0)), parse(text, k=np.array(0.0))).notes == []


def test_large_differences_stay_finite_and_shapes_are_told(tmp_path: Path) -> None:
    text = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N] x) => (float[M] y) <float k> { [mul] y = Mul(x, k) }"""
    zero = parse(text, k=np.array(0.0))
    report = compare(tmp_path, zero, parse(text, k=np.array(1.0)))
    assert not report.equal
    assert math.isfinite(report.max_relative_error)
    doubled = parse(text.replace("Mul(x, k)", "Concat<axis = 0>(x, x)").replace("<float k>", ""))
    report = compare(tmp_path, zero, doubled)
    assert report.outputs[0].detail == "shape [4], not [2]"


def test_a_real_model_equals_itself(tmp_path: Path) -> None:
    model = onnx.load(LIGHT / "light_squeezenet.onnx")
    report = compare(tmp_path, model, model, seeds=1)
    assert report.equal
    assert report.runs == 1
    assert report.tolerance < 1e-4
