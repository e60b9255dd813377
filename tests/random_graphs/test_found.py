"""What random graphs once found, each as small as it gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import syncbn_convert
from syncbn_convert.form.training_form import MIN_OPSET
from tests.fusion.cases import BN, W, build, norm, random
from tests.harness import run
from tests.random_graphs.float64 import Interpreter
from tests.random_graphs.generator import Sample
from tests.random_graphs.judge import Judge


def judge(model: onnx.ModelProto, command: str, **feeds: Any) -> None:
    getattr(Judge(Sample(model, feeds, {})), command)()


@pytest.mark.parametrize("opset", [7, 10])
@pytest.mark.parametrize("operator", ["Clip<min=-1.0, max=2.0>", "Pad<pads=[0,0,1,1], value=2.0>"])
def test_a_constant_of_the_type_that_branches_return(opset: int, operator: str) -> None:
    """The first input of If is its condition, whose type says nothing of what it returns."""
    rank = 4 if operator.startswith("Clip") else 2
    axes = ",".join("abcd"[:rank])
    model = build(
        f"(float[{','.join('3' * rank)}] x, bool cond) => (float[{axes}] y)",
        f"t = {BN}(x, s, b, m, v) u = If(cond) <then_branch = one () => (float[{axes}] p) "
        f"{{ p = Identity(t) }}, else_branch = two () => (float[{axes}] q) {{ q = Abs(t) }}> "
        f"y = {operator}(u)",
        norm(3),
        opset=opset,
    )
    x = np.random.default_rng(0).normal(size=[3] * rank).astype(np.float32)
    judge(model, "convert", x=x, cond=np.array(False))
    assert opset < MIN_OPSET


def test_a_running_statistic_that_is_returned_keeps_its_declaration() -> None:
    model = build(
        "(float[2,4,7,7] x) => (float[a,c,h,w_] y, float[channels] mean)",
        f"t = Conv(x, w) y, mean, var = {BN}<training_mode=1>(t, s, b, m, v)",
        {**W, **norm(6)},
    )
    judge(model, "convert", x=random(2, 4, 7, 7))


@pytest.mark.parametrize("returned", ["", ", float[c2] mean"])
def test_layers_in_training_mode_in_functions_of_functions(returned: str) -> None:
    header = '<opset_import: ["" : 17, "local" : 1], domain: "local">'
    inner = (
        "inner (x, s, b, m, v) => (y, mean) "
        f"{{ y, mean, var = {BN} <training_mode = 1> (x, s, b, m, v) }}"
    )
    outer = "outer (x, s, b, m, v) => (y, mean) { y, mean = local.inner (x, s, b, m, v) }"
    model = build(
        f"(float[2,4,7,7] x) => (float[a,c,h,w_] y{returned})",
        "y, mean = local.outer(x, s, b, m, v)",
        norm(4),
        functions=f"{header} {inner} {header} {outer}",
    )
    folded = syncbn_convert.fold(model, verify=False)
    assert isinstance(folded, onnx.ModelProto)
    assert [output.name for output in folded.graph.output] == ["y"]
    assert not folded.graph.node[0].attribute
    x = random(2, 4, 7, 7)
    wanted = Interpreter(model, lambda *_: False).run({"x": x})["y"]
    assert np.abs(run(folded, {"x": x})["y"] - wanted.value).max() <= wanted.tolerance


@pytest.mark.parametrize("versions", [(15, 17), (17, 15), (20, 21)])
@pytest.mark.parametrize("command", ["convert", "fold", "fuse"])
def test_functions_in_another_opset(versions: tuple[int, int], command: str) -> None:
    """Valid where what they use has not changed."""
    own, others = versions
    mode = ", training_mode = 1" if command == "fold" else ""
    outputs = "y, mean, var" if mode else "y"
    model = build(
        "(float[2,4,7,7] x) => (float[a,c,h,w_] y)",
        "y = local.block(x, w, s, b, m, v)",
        {**W, **norm(6)},
        opset=own,
        ir_version=10,
        functions=f'<opset_import: ["" : {others}], domain: "local">'
        "block (x, w, s, b, m, v) => (y) { t = Conv (x, w) "
        f"{outputs} = {BN} <epsilon = 0.001{mode}> (t, s, b, m, v) }}",
    )
    judge(model, command, x=random(2, 4, 7, 7))
