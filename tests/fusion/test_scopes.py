"""Names belong to a scope; functions are inlined where a normalization can go by that."""

from __future__ import annotations

import onnx
import onnx.helper
import pytest

from syncbn_convert.files import model_file
from syncbn_convert.passes import FuseBatchNorm
from tests.fusion.cases import BN, X4, Array, W, build, norm, random
from tests.fusion.judge import batchnorms, require_same
from tests.fusion.test_robustness import fused

IMPORTS = '<opset_import: ["" : 17], domain: "local">'
INLINE = '<opset_import: ["" : 17, "local" : 1], domain: "local">'
CONSTANTS = """
    s = Constant <value = float[2] {2.0, 0.5}> ()
    b = Constant <value = float[2] {0.5, 3.0}> ()
    m = Constant <value = float[2] {1.0, -1.0}> ()
    v = Constant <value = float[2] {4.0, 0.5}> ()
"""


def test_a_body_does_not_take_the_shapes_of_the_main_graph_for_its_own() -> None:
    """In the function `u` is [N, C, W]; in the main graph it has four axes."""
    model = build(
        "(float[2,3,2] x, float[2,3,4,2] z) => (float[a,c,l] y, float[p,q,r,s_] o)",
        "u = Relu(z) y = local.block(x) o = Relu(u)",
        {},
        functions=f"""
        {IMPORTS}
        block (x) => (y) {{
            w = Constant <value = float[2,2] {{1.0, -2.0, 0.5, 3.0}}> ()
            {CONSTANTS}
            u = MatMul (x, w)
            t = Transpose <perm = [0, 2, 1]> (u)
            y = BatchNormalization (t, s, b, m, v)
        }}
        """,
    )
    proto, _ = fused(model)
    assert not batchnorms(proto)


@pytest.mark.parametrize("shadowed", ["t", "k", "u"])
def test_a_branch_and_the_main_graph_share_a_name(shadowed: str) -> None:
    """ONNX forbids it between nested scopes, and allows it between branches."""
    branch = (
        "{name} = {kind} () => (float[a,c,l] {out}) {{ {v} = MatMul(x, w{n}) "
        "{out} = {bn}({v}, s, b, m, v_) }}"
    )
    then = branch.format(name="then_branch", kind="one", out="p", v=shadowed, n="", bn=BN)
    other = (
        f"else_branch = two () => (float[a,c,l] q) {{ {shadowed} = Transpose<perm=[0,2,1]>(x) "
        f"r = MatMul({shadowed}, w2) z = Transpose<perm=[0,2,1]>(r) q = {BN}(z, s, b, m, v_) }}"
    )
    parameters = {("v_" if key == "v" else key): value for key, value in norm(4).items()}
    model = build(
        "(float[2,4,4] x, bool cond) => (float[a,c,l] y)",
        f"y = If(cond) <{then}, {other}>",
        {"w": random(4, 4), "w2": random(4, 4, seed=1), **parameters},
    )
    proto, records = fused(model)
    assert batchnorms(proto) == 1, [record.reason for record in records]


CALLED = {
    "the layers together": (
        "y = local.block(x, w, s, b, m, v)",
        """block (x, w, s, b, m, v) => (y) {
            t = Conv (x, w)
            y = BatchNormalization (t, s, b, m, v)
        }""",
    ),
    "the normalization alone": (
        "t = Conv(x, w) y = local.norm(t, s, b, m, v)",
        "norm (x, s, b, m, v) => (y) { y = BatchNormalization (x, s, b, m, v) }",
    ),
    "the convolution alone": (
        f"t = local.conv(x, w) y = {BN}(t, s, b, m, v)",
        "conv (x, w) => (y) { y = Conv (x, w) }",
    ),
    "each in its own": (
        "t = local.conv(x, w) y = local.norm(t, s, b, m, v)",
        f"""conv (x, w) => (y) {{ y = Conv (x, w) }}
        {IMPORTS}
        norm (x, s, b, m, v) => (y) {{ y = BatchNormalization (x, s, b, m, v) }}""",
    ),
    "one within another": (
        "y = local.block(x, w, s, b, m, v)",
        f"""norm (x, s, b, m, v) => (y) {{ y = BatchNormalization (x, s, b, m, v) }}
        {INLINE}
        block (x, w, s, b, m, v) => (y) {{
            t = Conv (x, w)
            y = local.norm (t, s, b, m, v)
        }}""",
    ),
    "a convolution that reads": (
        f"t = {BN}(x, bs, bb, bm, bv) y = local.conv(t, w)",
        "conv (x, w) => (y) { y = Conv (x, w) }",
    ),
}


@pytest.mark.parametrize("name", CALLED)
def test_functions_called_with_their_weights(name: str) -> None:
    body, function = CALLED[name]
    params: dict[str, Array] = {**W, **norm(6), **norm(4, "b", seed=2)}
    model = build(X4, body, params, functions=f"{IMPORTS} {function}")
    subject = model_file.as_model(model)
    result = FuseBatchNorm()(subject)
    assert any("inlined" in note for note in result.notes)  # type: ignore[attr-defined]
    proto = model_file.to_proto(subject)
    onnx.checker.check_model(proto, full_check=True)
    require_same(model, proto)
    assert not batchnorms(proto)
    assert not FuseBatchNorm()(subject).modified


def test_two_calls_with_other_weights() -> None:
    """And with a layer that cannot go, in a function that stays."""
    body = (
        "t = local.block(x, w, s, b, m, v) u = local.other(t, s, b, m, v) "
        "y = local.block(u, k, s, b, m, v)"
    )
    functions = f"""
    {IMPORTS}
    block (x, w, s, b, m, v) => (y) {{
        t = Conv (x, w)
        y = BatchNormalization (t, s, b, m, v)
    }}
    {IMPORTS}
    other (x, s, b, m, v) => (y) {{ y = Softmax <axis = 1> (x) }}
    """
    params = {**W, "k": random(6, 6, 3, 3), **norm(6)}
    proto, _ = fused(build(X4, body, params, functions=functions))
    assert not batchnorms(proto)
    assert [function.name for function in proto.functions] == ["other"]


@pytest.mark.parametrize(
    "function",
    [
        "block (x, w, s, b, m, v) => (y) { t = Relu (x) y = BatchNormalization (t, s, b, m, v) }",
        "block (x, w, s, b, m, v) => (y) { t = Conv (x, w) u = Relu (t) "
        "y = BatchNormalization (u, s, b, m, v) }",
    ],
)
def test_functions_stay_where_nothing_is_won(function: str) -> None:
    channels = 6 if "Conv" in function else 4
    params = {**W, **norm(channels)}
    model = build(
        X4, "y = local.block(x, w, s, b, m, v)", params, functions=f"{IMPORTS} {function}"
    )
    subject = model_file.as_model(model)
    result = FuseBatchNorm()(subject)
    assert not result.modified
    assert [record.action for record in result.records] == ["kept"]  # type: ignore[attr-defined]


def test_a_function_in_another_opset_that_means_the_same() -> None:
    function = CALLED["the layers together"][1]
    model = build(
        X4,
        "y = local.block(x, w, s, b, m, v)",
        {**W, **norm(6)},
        functions=f"{IMPORTS.replace('17', '15')} {function}",
    )
    proto, _ = fused(model)
    assert not batchnorms(proto)
