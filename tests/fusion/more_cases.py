"""More models of the kinds that exporters and people write: each joins the cases when imported."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.fusion.cases import (
    AFTER,
    BN,
    CONV,
    X2,
    X4,
    Array,
    Params,
    W,
    add,
    build,
    conv,
    norm,
    random,
)  # fmt: skip

MAPS = frozenset(["Add", "Div", "Mul", "Sub"])
F = '<opset_import: ["" : 17], domain: "local">'
NESTED = '<opset_import: ["" : 17, "local" : 1], domain: "local">'
FLAT = "(float[5,4] x) => (float[a,c_] y)"
INSIDE = "s, b, m, v"
BEFORE = f"t = {BN}(x, s, b, m, v)"


def _opsets() -> None:
    for opset in (8, 10, 11, 12, 13, 14, 15, 16, 18, 19, 20, 21, 23, 24):
        body = f"{CONV} u = {BN}(t, s, b, m, v) z = Relu(u) q = Flatten(z) y = Gemm(q, k, j)"
        params = {"k": random(54, 3), "j": random(3)}
        interface = "(float[2,4,5,5] x) => (float[a,c] y)"
        add(f"opset {opset} conv, gemm", conv(body, params, interface=interface, opset=opset,
                                              ir_version=10 if opset > 20 else 8))  # fmt: skip
    for mode in (0, 1):
        body = f"{CONV} y = {BN}<training_mode={mode}>(t, s, b, m, v)"
        if mode:
            body = f"{CONV} y, p, q = {BN}<training_mode=1>(t, s, b, m, v)"
        add(f"training_mode written as {mode}, opset 14", conv(body, opset=14), left=mode)
    add(
        "one layer in training mode, one not",
        conv(
            f"{CONV} u = {BN}(t, s, b, m, v) z = Conv(u, k) "
            f"y, p, q = {BN}<training_mode=1>(z, s, b, m, v)",
            {"k": random(6, 6, 1, 1)},
        ),
        left=1,
    )


def _computed() -> None:
    wide, flat = random(12, 4, 3, 3), random(216)
    integers = {"zero": np.array([0]), "six": np.array([6]), "shape": np.array([6, 4, 3, 3])}
    spelled: dict[str, tuple[str, Params]] = {
        "Slice": ("w = Slice(k, zero, six)", {"k": wide}),
        "Gather": ("w = Gather(k, i)", {"k": wide, "i": np.array([0, 2, 4, 6, 8, 10])}),
        "Concat": ("w = Concat<axis=0>(k, j)", {"k": wide[:2], "j": wide[2:6]}),
        "Split": ("w, rest = Split(k, i)", {"k": wide, "i": np.array([6, 6])}),
        "Expand": ("w = Expand(k, shape)", {"k": random(6, 1, 3, 1)}),
        "Reshape": ("w = Reshape(k, shape)", {"k": flat}),
        "Unsqueeze": ("w = Unsqueeze(k, i)", {"k": random(6, 4, 3), "i": np.array([3])}),
        "Squeeze": ("w = Squeeze(k, zero)", {"k": random(1, 6, 4, 3, 3)}),
        "Mul": ("w = Mul(k, j)", {"k": W["w"], "j": random(6, 1, 1, 1)}),
        "Div": ("w = Div(k, j)", {"k": W["w"], "j": random(6, 1, 1, 1) + 3}),
        "Exp": ("w = Exp(k)", {"k": W["w"]}),
        "Where": ("w = Where(i, k, j)",
                  {"i": W["w"] > 0, "k": W["w"], "j": random(6, 4, 3, 3, seed=4)}),
        "ReduceMax": ("w = ReduceMax<axes=[0], keepdims=0>(k)", {"k": random(3, 6, 4, 3, 3)}),
        "Cast of float64": ("w = Cast<to=1>(k)", {"k": W["w"].astype(np.float64)}),
        "a chain": ("a = Transpose<perm=[1,0,2,3]>(k) c = Mul(a, j) e = Identity(c) "
                    "w = Transpose<perm=[1,0,2,3]>(e)", {"k": W["w"], "j": random(1)}),
    }  # fmt: skip
    for name, (body, given) in spelled.items():
        params = {**integers, **norm(6), **given}
        text = f"{body} {CONV} {AFTER}"
        add(f"weight computed by {name}", functools.partial(build, X4, text, params))
    zero = (
        "c0 = CastLike(o, x) e = Shape<start=0, end=1>(w) c = Expand(c0, e) "
        f"t = Conv(x, w, c) {AFTER}"
    )
    add("bias of zeros expanded to a shape", conv(zero, {"o": np.array(0.0)}, opset=18))
    variance = f"d = Mul(e, e) {CONV} y = {BN}(t, s, b, m, d)"
    add("variance computed", conv(variance, {"e": norm(6)["v"]}))
    role = f"k = Reshape(e, i) {CONV} y = {BN}(t, k, b, m, v)"
    add("scale reshaped", conv(role, {"e": random(1, 6, 1, 1) + 3, "i": np.array([-1])}))
    add("statistics behind identity", conv(
        f"d = Identity(m) e = Identity(v) {CONV} y = {BN}(t, s, b, d, e)"))  # fmt: skip
    add("scale and variance are one tensor", conv(f"{CONV} y = {BN}(t, v, b, m, v)"))


def _functions() -> None:
    block = f"block (x, w, {INSIDE}) => (y) {{ t = Conv (x, w) y = {BN} (t, {INSIDE}) }}"
    alone = f"norm (x, {INSIDE}) => (y) {{ y = {BN} (x, {INSIDE}) }}"
    convolution = "conv (x, w) => (y) { y = Conv (x, w) }"
    called: dict[str, tuple[str, str]] = {
        "conv and layer in a function": (f"y = local.block(x, w, {INSIDE})", f"{F} {block}"),
        "layer in a function": (f"{CONV} y = local.norm(t, {INSIDE})", f"{F} {alone}"),
        "conv in a function": (f"t = local.conv(x, w) {AFTER}", f"{F} {convolution}"),
        "conv and layer in two functions": (
            f"t = local.conv(x, w) y = local.norm(t, {INSIDE})", f"{F} {convolution} {F} {alone}"),
        "function in a function": (
            f"y = local.block(x, w, {INSIDE})",
            f"{F} {alone} {NESTED} block (x, w, {INSIDE}) => (y) "
            f"{{ t = Conv (x, w) y = local.norm (t, {INSIDE}) }}"),
        "function with attributes": (
            f"{CONV} y = local.norm<e = 0.25>(t, {INSIDE})",
            f"{F} norm <e> (x, {INSIDE}) => (y) "
            f"{{ y = {BN} <epsilon : float = @e> (x, {INSIDE}) }}"),
        "function that shares names with the graph": (
            f"u = Conv(x, w) t = Relu(u) z = Conv(t, k) y = local.norm(z, {INSIDE})",
            f"{F} norm (u, {INSIDE}) => (z) {{ t = Identity (u) z = {BN} (t, {INSIDE}) }}"),
        "function called twice": (
            f"u = local.block(x, w, {INSIDE}) y = local.block(u, k, {INSIDE})", f"{F} {block}"),
    }  # fmt: skip
    for name, (body, functions) in called.items():
        params = {**W, "k": random(6, 6, 3, 3), **norm(6)}
        add(name, functools.partial(build, X4, body, params, functions=functions))


def _names() -> None:
    def named(body: str, nodes: dict[int, str], **params: Array) -> onnx.ModelProto:
        model = conv(body, params)()
        for index, name in nodes.items():
            model.graph.node[index].name = name
        return model

    chain = f"{CONV} u = {BN}(t, s, b, m, v) z = Conv(u, k) y = {BN}(z, s, b, m, v)"
    more = {"k": random(6, 6, 1, 1)}
    add("nodes named alike but one", lambda: named(chain, {0: "c", 1: "c/bias", 2: "d"}, **more))
    add("values named as new ones would be", conv(
        f'{CONV} {AFTER} "w/fused" = Conv(x, w) "w/fused_1" = Relu("w/fused")'
        ' "Conv(t)/bias" = Identity("w/fused_1")',
        interface='(float[2,4,7,7] x) => (float[a,c,h,w_] y, float[a,c,h,w_] "Conv(t)/bias")',
    ))  # fmt: skip
    add("unicode names", conv(f'"層/t" = Conv(x, w) y = {BN}("層/t", s, b, m, v)'))
    add("weights named by a path", lambda: _with_weight("model.0.weight:0"))
    add("a value named as its node", lambda: named(f"{CONV} {AFTER}", {0: "t", 1: "y"}))


def _with_weight(name: str) -> onnx.ModelProto:
    model = conv(f"{CONV} {AFTER}")()
    model.graph.node[0].input[1] = name
    model.graph.initializer[0].name = name
    return model


def _maps() -> None:
    per, pixel = random(6, 1, 1, seed=4) + 3, random(4, 1, 1) + 3
    after: dict[str, tuple[str, Array, int]] = {
        "mul after conv": ("y = Mul(t, k)", per, 0),
        "div after conv": ("y = Div(t, k)", per, 0),
        "add after conv": ("y = Add(t, k)", per, 0),
        "sub after conv": ("y = Sub(t, k)", per, 0),
        "constant minus conv": ("y = Sub(k, t)", per, 0),
        "scalar times conv": ("y = Mul(k, t)", np.array(0.7), 0),
        "mul and add after conv": ("u = Mul(t, k) y = Add(u, k)", per, 0),
        "mul by a row after conv": ("y = Mul(t, k)", random(5), 1),
        "mul by [1, C, 1, 1] after conv": ("y = Mul(t, k)", per[None], 0),
        "add of a full map after conv": ("y = Add(t, k)", random(1, 6, 5, 5), 1),
    }
    for name, (body, constant, left) in after.items():
        made = functools.partial(build, X4, f"{CONV} {body}", {**W, "k": constant.astype("f4")})
        add(name, made, left=left, counted=MAPS)
    std = {"k": pixel, "j": random(4, 1, 1)}
    before: dict[str, tuple[str, Params, int]] = {
        "input normalization before conv": ("u = Sub(x, j) t = Div(u, k) y = Conv(t, w)", std, 0),
        "input normalization by numbers": (
            "u = Sub(x, j) t = Div(u, k) y = Conv(t, w)",
            {"k": np.array(2.5), "j": np.array([0.5])}, 0),
        "input scaled before padded conv": (
            "t = Mul(x, k) y = Conv<pads=[1,1,1,1]>(t, w)", {"k": pixel}, 0),
        "input normalization before padded conv": (
            "u = Mul(x, k) t = Sub(u, j) y = Conv<pads=[1,1,1,1]>(t, w)", std, 2),
        "input scaled by rows before conv": ("t = Mul(x, k) y = Conv(t, w)", {"k": random(7)}, 1),
        "input normalization before two convs": (
            "u = Sub(x, j) t = Div(u, k) y = Conv(t, w) z = Conv(t, w)", std, 2),
    }  # fmt: skip
    for name, (body, params, left) in before.items():
        given = {**W, **{key: value.astype(np.float32) for key, value in params.items()}}
        add(name, functools.partial(build, X4, body, given), left=left, counted=MAPS)
    add("mul before gemm", functools.partial(
        build, FLAT, "t = Mul(x, k) y = Gemm(t, w)", {"w": random(4, 6), "k": random(4) + 3}),
        counted=MAPS)  # fmt: skip
    add("mul after matmul", functools.partial(
        build, FLAT, "t = MatMul(x, w) y = Mul(t, k)", {"w": random(4, 6), "k": random(6)}),
        counted=MAPS)  # fmt: skip
    add("whole numbers multiplied", functools.partial(
        build, "(int32[2,4] x) => (int32[a,c] y)", "t = MatMul(x, w) y = Mul(t, k)",
        {"w": np.arange(24, dtype=np.int32).reshape(4, 6), "k": np.full(6, 3, np.int32)}),
        left=1, counted=MAPS)  # fmt: skip
    add("input normalization, conv, layer", conv(
        f"u = Sub(x, j) q = Div(u, k) t = Conv(q, w) {AFTER}", std))  # fmt: skip


def _chains() -> None:
    dense: dict[str, Any] = {"interface": X2, "channels": 4, "weight": random(4, 6)}
    second = norm(6, "p", seed=1)
    last = f"y = {BN}(u, ps, pb, pm, pv)"
    add("layer, matmul, layer", conv(f"{BEFORE} u = MatMul(t, w) {last}", second, **dense))
    add("layer, gemm, layer", conv(f"{BEFORE} u = Gemm(t, w, pb) {last}", second, **dense))
    add("layer, matmul, add, layer", conv(
        f"{BEFORE} q = MatMul(t, w) u = Add(q, pb) {last}", second, **dense))  # fmt: skip
    add("layer, conv, layer", conv(f"{BEFORE} u = Conv(t, w) {last}", second, channels=4))
    add("layer, padded conv, layer", conv(
        f"{BEFORE} u = Conv<pads=[1,1,1,1]>(t, w) {last}", second, channels=4), left=1)  # fmt: skip
    add("layer, flatten, gemm, layer", conv(
        f"{BEFORE} q = Flatten(t) u = Gemm(q, k, pb) {last}", {**second, "k": random(36, 6)},
        channels=4, interface="(float[2,4,3,3] x) => (float[a,c] y)"))  # fmt: skip
    add("layer, relu, conv, layer", conv(
        f"{BEFORE} q = Relu(t) u = Conv(q, w) {last}", second, channels=4), left=1)  # fmt: skip
    add("three layers and a conv", conv(
        f"{BEFORE} q = {BN}(t, s, b, m, v) r = {BN}(q, s, b, m, v) y = Conv(r, w)",
        channels=4))  # fmt: skip
    add("residual block", conv(
        f"{CONV} u = {BN}(t, s, b, m, v) r = Relu(u) q = Conv<pads=[1,1,1,1]>(r, k) "
        f"z = {BN}(q, ps, pb, pm, pv) g = Add(z, r) y = Relu(g)",
        {**second, "k": random(6, 6, 3, 3)}))  # fmt: skip
    add("depthwise, pointwise", conv(
        f"{CONV} u = {BN}(t, s, b, m, v) r = Clip(u, low, high) q = Conv<group=6>(r, k) "
        f"z = {BN}(q, ps, pb, pm, pv) y = Conv(z, j)",
        {**second, "k": random(6, 1, 3, 3), "j": random(3, 6, 1, 1),
         "low": np.array(0, np.float32), "high": np.array(6, np.float32)}))  # fmt: skip
    add("a sum of two layers, one of them behind a conv", conv(
        f"{CONV} u = {BN}(t, s, b, m, v) z = {BN}(r, s, b, m, v) y = Add(u, z)",
        interface="(float[2,4,7,7] x, float[2,6,5,5] r) => (float[a,c,h,w_] y)"),
        left=1)  # fmt: skip
    add("branches that end in concat", conv(
        f"{CONV} u = {BN}(t, s, b, m, v) q = Conv(x, k) z = {BN}(q, s, b, m, v) "
        "y = Concat<axis=1>(u, z)", {"k": random(6, 4, 3, 3, seed=1)}))  # fmt: skip


def _shapes() -> None:
    one = "(float[2,4,9] x) => (float[a,c,l] y)"
    three = "(float[2,4,5,5,5] x) => (float[a,c,d,h,w_] y)"
    add("grouped conv 1-D", conv(f"t = Conv<group=2, dilations=[2]>(x, w) {AFTER}", interface=one,
                                 weight=random(6, 2, 3)))  # fmt: skip
    add("before conv 1-D", conv(f"{BEFORE} y = Conv(t, w)", interface=one, channels=4,
                                weight=random(6, 4, 3)))  # fmt: skip
    add("before conv 3-D", conv(f"{BEFORE} y = Conv(t, w)", interface=three, channels=4,
                                weight=random(6, 4, 3, 3, 3)))  # fmt: skip
    add("transposed conv 1-D", conv(
        f"t = ConvTranspose<group=2, strides=[2]>(x, w) {AFTER}", interface=one,
        weight=random(4, 3, 3)))  # fmt: skip
    add("transposed conv 3-D", conv(f"t = ConvTranspose(x, w, c) {AFTER}", {"c": random(6)},
        interface=three, weight=random(4, 6, 2, 2, 2)))  # fmt: skip
    add("transposed conv dilated, padded", conv(
        f"t = ConvTranspose<dilations=[2,2], pads=[1,0,0,1]>(x, w) {AFTER}",
        weight=random(4, 6, 2, 2)))  # fmt: skip
    add("transposed conv to a given shape", conv(
        f"t = ConvTranspose<output_shape=[15,15], strides=[2,2]>(x, w) {AFTER}",
        weight=random(4, 6, 3, 3)))  # fmt: skip
    add("matmul of rank 4, transposed", conv(
        f"u = MatMul(x, w) t = Transpose<perm=[0,3,1,2]>(u) {AFTER}",
        interface="(float[2,3,5,4] x) => (float[a,c,h,w_] y)", weight=random(4, 6)))  # fmt: skip
    add("channels last", conv(
        f"p = Transpose<perm=[0,3,1,2]>(x) t = Conv(p, w) u = {BN}(t, s, b, m, v) "
        "y = Transpose<perm=[0,2,3,1]>(u)",
        interface="(float[2,7,7,4] x) => (float[a,h,w_,c] y)"))  # fmt: skip
    for name, interface in (
        ("batch", "(float[N,4,7,7] x) => (float[N,6,5,5] y)"),
        ("batch and size", "(float[N,4,H,L] x) => (float[N,6,p,q] y)"),
        ("nothing", "(float[N,C,H,L] x) => (float[a,c,h,l] y)"),
    ):
        add(f"dynamic {name}", conv(f"{CONV} {AFTER}", interface=interface))
    add("dynamic batch, flatten, gemm", conv(
        f"{BEFORE} u = Flatten(t) y = Gemm(u, k)", {"k": random(36, 6)}, channels=4, opset=13,
        interface="(float[N,4,3,3] x) => (float[N,6] y)"))  # fmt: skip
    add("dynamic batch, reshape", conv(
        f"{CONV} u = Reshape(t, i) y = {BN}(u, s, b, m, v)", {"i": np.array([0, 6, 25])},
        interface="(float[N,4,7,7] x) => (float[N,6,25] y)"))  # fmt: skip
    add("before conv of single pixels, padded by name", conv(
        f'{BEFORE} y = Conv<auto_pad="SAME_UPPER">(t, w)', channels=4,
        weight=random(6, 4, 1, 1)))  # fmt: skip
    add("before conv, pads of 0", conv(
        f"{BEFORE} y = Conv<pads=[0,0,0,0]>(t, w)", channels=4))  # fmt: skip


def _gemms() -> None:
    square: dict[str, Any] = {"interface": FLAT.replace("5,4", "4,5")}
    add("gemm transA and transB", conv(f"t = Gemm<transA=1, transB=1>(x, w) {AFTER}",
                                       weight=random(6, 4), **square))  # fmt: skip
    add("gemm negative alpha", conv(f"t = Gemm<alpha=-1.5>(x, w, c) {AFTER}", {"c": random(6)},
                                    interface=FLAT, weight=random(4, 6)))  # fmt: skip
    add("gemm negative beta", conv(f"t = Gemm<beta=-0.5>(x, w, c) {AFTER}", {"c": random(1, 6)},
                                   interface=FLAT, weight=random(4, 6)))  # fmt: skip
    add("before gemm transA", conv(
        f"{BEFORE} y = Gemm<transA=1>(t, w)", channels=4, interface=FLAT,
        weight=random(5, 3)), left=1)  # fmt: skip
    add("before gemm, beta 0", conv(
        f"{BEFORE} y = Gemm<beta=0.0>(t, w, c)", {"c": random(6)}, channels=4, interface=FLAT,
        weight=random(4, 6)))  # fmt: skip
    add("gemm and matmul share a weight", conv(
        f"t = Gemm(x, w, c) u = {BN}(t, s, b, m, v) q = MatMul(x, w) y = Add(u, q)",
        {"c": random(6)}, interface=FLAT, weight=random(4, 6)))  # fmt: skip
    add("constant on the left of gemm", conv(
        f"t = Gemm(w, x) {AFTER}", interface=FLAT.replace("5,4", "4,6"), weight=random(5, 4),
        ), left=1)  # fmt: skip


def _quantized() -> None:
    generator = np.random.default_rng(7)
    scale, point = np.array(0.05, np.float32), np.array(3, np.int8)
    around: Params = {"xs": scale, "xz": point, "ys": np.array(0.1, np.float32)}
    around_x = "xq = QuantizeLinear(x, xs, xz) xd = DequantizeLinear(xq, xs, xz)"
    back = "yq = QuantizeLinear(r, ys, xz) y = DequantizeLinear(yq, ys, xz)"
    for kind in (np.int8, np.uint8):
        low = -100 if kind == np.int8 else 0
        params: Params = {
            **around,
            "q": generator.integers(low, 100, (6, 4, 3, 3)).astype(kind),
            "k": generator.uniform(0.01, 0.02, 6).astype(np.float32),
            "p": np.arange(6).astype(kind),
            **norm(6),
        }
        weight = "w = DequantizeLinear<axis=0>(q, k, p) t = Conv(xd, w)"
        body = f"{around_x} {weight} r = {BN}(t, s, b, m, v) " + back
        name = np.dtype(kind).name
        add(f"activations and {name} weights quantized", functools.partial(build, X4, body, params))
    whole = np.array([1000, -2000, 500, 40, -70, 800], np.int32)
    body = (
        f"{around_x} w = DequantizeLinear<axis=0>(q, k, p) c = DequantizeLinear<axis=0>(i, k) "
        f"t = Conv(xd, w, c) {AFTER}"
    )
    given = {**params, "i": whole}
    add("bias quantized, too", functools.partial(build, X4, body, given))
    add(
        "integer convolution",
        functools.partial(
            build,
            "(uint8[2,4,7,7] x) => (float[a,c,h,w_] y)",
            f"i = ConvInteger(x, q) t = Cast<to=1>(i) {AFTER}",
            {"q": params["q"].astype(np.uint8), **norm(6)},
        ),
        left=1,
    )
    add("two readers of a dequantized weight", functools.partial(
        build, X4, f"w = DequantizeLinear<axis=0>(q, k, p) {CONV} {AFTER} z = Conv(x, w)",
        {**{key: params[key] for key in "qkp"}, **norm(6)}), left=1)  # fmt: skip


def _bodies() -> None:
    interface = "(float[2,4,7,7] x, bool cond) => (float[a,c,h,w_] y)"

    def branch(name: str, body: str, result: str) -> str:
        return f"{name}_branch = {name} () => (float[a,c,h,w_] {result}) {{ {body} }}"

    then = branch("then", f"t = Conv(x, w) p = {BN}(t, s, b, m, v)", "p")
    other = branch("else", f"u = Conv(x, w) q = {BN}(u, ps, pb, pm, pv)", "q")
    params = {**W, **norm(6), **norm(6, "p", seed=1)}
    add("both branches share a weight", functools.partial(
        build, interface, f"y = If(cond) <{then}, {other}>", params))  # fmt: skip
    alike = other.replace("u = ", "t = ").replace("(u,", "(t,")
    add("both branches use one name", functools.partial(
        build, interface, f"y = If(cond) <{then}, {alike}>", params))  # fmt: skip
    add("behind branches", functools.partial(
        build, interface,
        f"t = If(cond) <{branch('then', 'p = Conv(x, w)', 'p')}, "
        f"{branch('else', 'q = Conv(x, w)', 'q')}> {AFTER}", {**W, **norm(6)}), left=1)  # fmt: skip


def _notes() -> None:
    add("everything annotated", _annotated)
    add("external metadata and training info left alone", _described)


def _annotated() -> onnx.ModelProto:
    model = conv(f"{CONV} {AFTER}", {"y_scale": np.array(0.1, np.float32)})()
    annotation = model.graph.quantization_annotation.add(tensor_name="y")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="y_scale")
    for node in model.graph.node:
        node.doc_string = f"doc of {node.op_type}"
        node.metadata_props.add(key="scope", value=node.op_type)
    info = helper.make_tensor_value_info("t", onnx.TensorProto.FLOAT, [2, 6, 5, 5])
    model.graph.value_info.append(info)
    model.ir_version = 10
    return model


def _described() -> onnx.ModelProto:
    model = conv(f"{CONV} {AFTER}")()
    model.doc_string, model.producer_name = "a model", "someone"
    model.metadata_props.add(key="labels", value="cat,dog")
    model.graph.doc_string = "a graph"
    unused = numpy_helper.from_array(random(3), "unused")
    model.graph.initializer.append(unused)
    return model


_opsets()
_computed()
_functions()
_names()
_maps()
_chains()
_shapes()
_gemms()
_quantized()
_bodies()
_notes()
