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


@pytest.mark.parametrize("spelling", ["Identity(v0)", "Constant<value = float[4] {1, 2, 3, 4}>()"])
def test_a_computed_constant_where_initializers_are_inputs(spelling: str) -> None:
    """Nothing can be fused; what is folded beside is no input."""
    params = norm(4)
    params["v0"] = params.pop("v")
    model = build(
        "(float[2,4,7,7] x) => (float[a,c,h,k] y)",
        f"v = {spelling} y = {BN}(x, s, b, m, v)",
        params,
        opset=9,
        ir_version=3,
    )
    judge(model, "fuse", x=random(2, 4, 7, 7))


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


_MODES = {"fuse": ("", "y"), "fold": (", training_mode = 1", "y, mean, var")}
_FUNCTION = '<opset_import: ["" : 17, "local" : 1], domain: "local">'
_RETURNED = "(float[a,c,h,k] p)", "(float[a,c,h,k] q)"


def _function(command: str, returned: str, before: str = "a = Abs (x) t = Conv (a, w)") -> str:
    mode, outputs = _MODES[command]
    return (
        f"{_FUNCTION} block (x, w, s, b, m, v) => ({returned}) {{ {before} "
        f"{outputs} = {BN} <epsilon = 0.001{mode}> (t, s, b, m, v) }}"
    )


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("command", _MODES)
@pytest.mark.parametrize(
    ("then_body", "else_body"),
    [
        ("a = Neg(y) p = Tanh(a)", "a_2 = Abs(y) q = Neg(a_2)"),
        ("a = local.block(x, w, s, b, m, v) p = Add(a, y)", "a_3 = Abs(y) q = Neg(a_3)"),
    ],
)
def test_an_inlined_value_beside_bodies_that_follow(
    calls: int, command: str, then_body: str, else_body: str
) -> None:
    then_out, else_out = _RETURNED
    called = "y = local.block(x, w, s, b, m, v)"
    if calls == 2:
        called = f"{called.replace('y', 'u')} {called.replace('y', 'o')} y = Sub(u, o)"
    model = build(
        "(float[2,4,7,7] x, bool cond) => (float[a,c,h,k] z)",
        f"{called} z = If(cond) <then_branch = one () => {then_out} {{ {then_body} }}, "
        f"else_branch = two () => {else_out} {{ {else_body} }}>",
        {**W, **norm(6)},
        functions=_function(command, "y"),
    )
    judge(model, command, x=random(2, 4, 7, 7), cond=np.array(True))


@pytest.mark.parametrize("command", _MODES)
def test_bodies_inside_an_inlined_function(command: str) -> None:
    """Their initializers and values are named as values around the call, and there are two."""
    then_out, else_out = _RETURNED
    before = (
        "k = Constant <value = bool {1}> () a = If (k) "
        f"<then_branch = one () => {then_out} <float c = {{2}}> {{ d = Mul (x, c) p = Abs (d) }}, "
        f"else_branch = two () => {else_out} {{ q = Neg (x) }}> t = Conv (a, w)"
    )
    model = build(
        "(float[2,4,7,7] x, float[1] c) => (float[a,c,h,k] z)",
        "y = local.block(x, w, s, b, m, v) u = local.block(x, w, s, b, m, v) d = Mul(y, c) "
        "z = Sub(d, u)",
        {**W, **norm(6)},
        functions=_function(command, "y", before),
    )
    judge(model, command, x=random(2, 4, 7, 7), c=np.full(1, 3, np.float32))


@pytest.mark.parametrize("command", _MODES)
@pytest.mark.parametrize("reader", ["", " u = Neg(z)"])
def test_an_inlined_function_that_returns_its_input(command: str, reader: str) -> None:
    model = build(
        f"(float[2,4,7,7] x) => (float[a,c,h,k] y, float[e,f,g,i] {'u' if reader else 'z'})",
        f"y, z = local.block(x, w, s, b, m, v){reader}",
        {**W, **norm(6)},
        functions=_function(command, "y, x"),
    )
    judge(model, command, x=random(2, 4, 7, 7))


@pytest.mark.parametrize("command", _MODES)
def test_an_inlined_call_that_leaves_an_output_out(command: str) -> None:
    model = build(
        "(float[2,4,7,7] x) => (float[a,c,h,k] y)",
        '"", y = local.block(x, w, s, b, m, v)',
        {**W, **norm(6)},
        functions=_function(command, "a, y"),
    )
    judge(model, command, x=random(2, 4, 7, 7))
