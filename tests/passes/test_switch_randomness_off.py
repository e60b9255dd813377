from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from syncbn_convert import (
    convert_with_report,
    fold_with_report,
    fuse_with_report,
    inspect,
)
from syncbn_convert.passes import SwitchRandomnessOff
from tests.harness import apply_and_check
from tests.verification.samples import parse
from tests.verification.test_evidence import DRAWS, HEAD, MASKS, dropout, masked

Array = np.ndarray[Any, np.dtype[Any]]
X = np.random.default_rng(3).normal(size=(5, 16)).astype(np.float32)

BATCHNORM_NET = """
g (float[N,16] x) => (float[N,4] y)
<float[16,4] w, float[4] s, float[4] b, float[4] m, float[4] v, float keep, float drop, float zero,
 float ratio, bool mode> {
  c = MatMul(x, w)
  [bn] h, rm, rv = BatchNormalization<training_mode = 1>(c, s, b, m, v)
  s2 = Shape(h)
  BODY
}"""


class Block(nn.Module):
    """What torchvision's stochastic depth does, after a convolution and a normalization."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.drop, self.mode = nn.Dropout(0.4), mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.convolution(self.drop(x)))
        if not self.training:
            return x + y
        size = [y.shape[0] if self.mode == "row" else 1, 1, 1, 1]
        noise = torch.empty(size, dtype=y.dtype).bernoulli_(0.8)
        return x + y * noise.div_(0.8)


def run(model: onnx.ModelProto, x: Array) -> Array:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    first, second = (session.run(None, {"x": x})[0] for _ in range(2))
    assert first.tobytes() == second.tobytes()
    result: Array = first
    return result


def batchnorm_net(body: str) -> onnx.ModelProto:
    values = {"keep": 0.75, "drop": 0.25, "zero": 0.0, "ratio": 0.5, "mode": True}
    arrays = {name: np.array(value) for name, value in values.items()}
    return parse(
        HEAD + BATCHNORM_NET.replace("BODY", body.replace("(keep, s)", "(keep, s2)")), 0, **arrays
    )


@pytest.mark.parametrize("body", MASKS.values(), ids=MASKS)
def test_product_with_a_mask_becomes_the_other_factor(body: str) -> None:
    model = masked(body)
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    rewritten, result = apply_and_check(
        SwitchRandomnessOff(),
        model,
        feeds={"x": X},
        expected=lambda f: {"y": f["x"] @ weights},
        rtol=1e-6,
    )
    assert [record.reason for record in result.records] == ["stochastic depth switched off"]
    assert {node.op_type for node in rewritten.graph.node} <= {"MatMul", "Shape", "Identity"}
    assert run(rewritten, X).shape == (5, 4)


WRONG = {
    **DRAWS,
    "divided by another number": "u = RandomUniformLike(h)  b = Less(u, keep)"
    "  m = Cast<to = 1>(b)  n = Div(m, drop)  y = Mul(h, n)",
    "divided by the share of zeros": "u = RandomUniformLike(h)  b = Greater(u, keep)"
    "  m = Cast<to = 1>(b)  n = Div(m, keep)  y = Mul(h, n)",
    "mask read twice": "u = RandomUniformLike(h)  b = Less(u, keep)  m = Cast<to = 1>(b)"
    "  n = Div(m, keep)  o = Mul(h, n)  y = Add(o, n)",
    "other range": "u = RandomUniformLike<high = 2.0>(h)  b = Less(u, keep)"
    "  m = Cast<to = 1>(b)  n = Div(m, keep)  y = Mul(h, n)",
    "mask divides": "u = RandomUniformLike(h)  b = Less(u, keep)  m = Cast<to = 1>(b)"
    "  n = Div(m, keep)  y = Div(h, n)",
    "constant divided by the mask": "u = RandomUniformLike(h)  b = Less(u, keep)"
    "  m = Cast<to = 1>(b)  n = Div(keep, m)  y = Mul(h, n)",
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG)
def test_anything_else_is_left_and_named(body: str) -> None:
    _, result = apply_and_check(SwitchRandomnessOff(), masked(body))
    assert not result.modified
    assert [record.action for record in result.records] == ["left random"]


def test_mask_that_could_be_larger_becomes_ones() -> None:
    text = (
        HEAD
        + """
g (float[N,1] x, float[M,4] like) => (float[K,4] y) <float keep> {
  u = RandomUniformLike(like)  b = Less(u, keep)  m = Cast<to = 1>(b)  n = Div(m, keep)
  y = Mul(x, n)
}"""
    )
    model = parse(text, keep=np.array(0.75))
    feeds = {"x": X[:, :1], "like": X[:, :4]}
    apply_and_check(
        SwitchRandomnessOff(),
        model,
        feeds=feeds,
        expected=lambda f: {"y": np.broadcast_to(f["x"], (5, 4))},
    )


@pytest.mark.parametrize("opset", [12, 13, 17, 22])
@pytest.mark.parametrize("mode", ["initializer", "Constant"])
@pytest.mark.parametrize("ratio", ["ratio", ""])
def test_dropout_passes_on_what_comes_in(opset: int, mode: str, ratio: str) -> None:
    text = f"""
<ir_version: 8, opset_import: ["" : {opset}]>
g (float[N,16] x) => (float[N,16] y, bool[N,16] mask) <float ratio, bool given> {{
  one = Constant<value_int = 1>()  made = Cast<to = 9>(one)
  y, mask = Dropout(x, {ratio}, {"given" if mode == "initializer" else "made"})
}}"""
    model = parse(text, ratio=np.array(0.5), given=np.array(True))
    rewritten, result = apply_and_check(
        SwitchRandomnessOff(),
        model,
        feeds={"x": X},
        expected=lambda f: {"y": f["x"], "mask": np.ones((5, 16), bool)},
    )
    assert [record.reason for record in result.records] == ["dropout switched off"]
    assert run(rewritten, X).tobytes() == X.tobytes()


def test_dropout_of_old_opsets_goes_by_its_attribute() -> None:
    for opset, attribute, switched in ((6, "", True), (6, "<is_test = 1>", False), (7, "", False)):
        model = parse(
            f'<ir_version: 8, opset_import: ["" : {opset}]> '
            f"g (float[N,16] x) => (float[N,16] y) {{ y = Dropout{attribute}(x) }}"
        )
        _, result = apply_and_check(SwitchRandomnessOff(), model)
        assert result.modified == switched


def test_dropout_that_a_caller_switches_is_left() -> None:
    text = HEAD + "g (float[N,4] x, bool mode) => (float[N,4] y) { y = Dropout(x, , mode) }"
    _, result = apply_and_check(SwitchRandomnessOff(), parse(text))
    assert result.records[0].reason == "its mode 'mode' is no constant, so its caller decides"
    _, result = apply_and_check(SwitchRandomnessOff(fed=True), parse(text))
    assert result.records[0].action == "switched off"


def test_dropout_in_bodies_and_functions_is_switched_off() -> None:
    function = """
<ir_version: 10, opset_import: ["" : 17, "local" : 1]>
g (float[N,16] x) => (float[N,16] y) { y = local.drop(x) }
<domain: "local", opset_import: ["" : 17]>
drop (u) => (o) { i = Constant<value_int = 1>()  t = Cast<to = 9>(i)  o = Dropout(u, , t) }"""
    body = (
        HEAD
        + """
g (float[N,16] x) => (float[N,16] y) <bool mode> {
  y = If(mode) <
    then_branch = t () => (float[N,16] a) { a = Dropout(x, , mode) },
    else_branch = e () => (float[N,16] b) { b = Neg(x) }
  >
}"""
    )
    for model in (parse(function), parse(body, mode=np.array(True))):
        rewritten, _ = apply_and_check(
            SwitchRandomnessOff(), model, feeds={"x": X}, expected=lambda f: {"y": f["x"]}
        )
        assert run(rewritten, X).tobytes() == X.tobytes()


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("mode", ["row", "batch"])
def test_folded_training_export_of_torch_computes_what_torch_does_in_inference(
    opset: int, mode: str
) -> None:
    torch.manual_seed(0)
    block, stream = Block(mode).train(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            block,
            (torch.zeros(2, 3, 4, 4),),
            stream,  # type: ignore[arg-type]  # torch takes it, too
            opset_version=opset,
            training=torch.onnx.TrainingMode.TRAINING,
            dynamo=False,
            do_constant_folding=False,
            input_names=["x"],
            dynamic_axes={"x": {0: "N"}},
        )
    exported = onnx.load_from_string(stream.getvalue())
    folded, report = fold_with_report(exported)
    assert isinstance(folded, onnx.ModelProto)
    assert [record.reason for record in report.records] == [
        "was in training mode",
        "dropout switched off",
        "stochastic depth switched off",
    ]
    assert not {"Dropout", "Shape", "Expand"} & {
        node.op_type for node in folded.graph.node if len(node.input) > 2
    }
    x = np.random.default_rng(0).normal(size=(5, 3, 4, 4)).astype(np.float32)
    statistics = {t.name: onnx.numpy_helper.to_array(t).copy() for t in exported.graph.initializer}
    block.load_state_dict(
        {
            name: torch.from_numpy(statistics[name]) if name in statistics else value
            for name, value in block.state_dict().items()
        }
    )
    with torch.no_grad():
        expected = block.double().eval()(torch.from_numpy(x).double()).numpy()
    assert np.abs(run(folded, x) - expected).max() <= 1e-6 * np.abs(expected).max()
    assert report.tolerance is not None
    assert report.tolerance < 1e-4


def test_fold_switches_off_where_nothing_else_is_to_do() -> None:
    folded, report = fold_with_report(dropout())
    assert isinstance(folded, onnx.ModelProto)
    run(folded, X)
    assert (report.found, report.converted) == (0, 0)
    assert report.records[0].reason == "dropout switched off"
    again, unchanged = fold_with_report(folded)
    assert again == folded
    assert any(note.startswith("nothing to fold") for note in unchanged.notes)


@pytest.mark.parametrize("body", [DRAWS["RandomNormalLike"], DRAWS["Multinomial"]])
def test_what_stays_random_is_named_by_every_command(body: str) -> None:
    model = batchnorm_net(body)
    _, folded = fold_with_report(model)
    _, converted = convert_with_report(model)
    inference = batchnorm_net(body)
    del inference.graph.node[1].output[1:], inference.graph.node[1].attribute[:]
    _, fused = fuse_with_report(inference)
    for notes in (folded.notes, converted.notes, fused.notes, inspect(model).notes):
        assert any(note.startswith("node '") and "draws random" in note for note in notes), notes
    for report in (folded, fused):
        assert any("output 'y': nothing is proven" in note for note in report.notes)


def test_convert_names_dropout_and_verifies_without_it() -> None:
    _, report = convert_with_report(batchnorm_net("y = Dropout(h, ratio, mode)"))
    assert any("(Dropout) draws random numbers" in note for note in report.notes)
    assert report.tolerance is not None
    assert report.tolerance < 1e-3


def test_calibrate_names_what_draws(tmp_path: Path) -> None:
    from syncbn_convert import calibrate_with_report

    model = batchnorm_net("y = Dropout(h, ratio, mode)")
    np.savez(tmp_path / "d.npz", x=X)
    _, report = calibrate_with_report(model, tmp_path / "d.npz")
    assert any("draws random numbers" in note for note in report.notes)
