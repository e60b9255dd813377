"""Small models made to be fused wrongly: what a fuser has to do, and what it must not."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]
Params = dict[str, Array]

BN = "BatchNormalization"


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, and how many normalizations or affine maps an exact fuser leaves in it.

    Attributes:
        name: What is odd about it.
        model: The model.
        left: How many of the counted nodes have to stay.
        counted: Operators that are to go; BatchNormalization, if no others are.
    """

    name: str
    model: onnx.ModelProto
    left: int
    counted: frozenset[str] = frozenset([BN])


MUST_BE_REFUSED = frozenset(
    [
        "conv outside, layer in an if body",
        "float16 overflow",
        "float16 underflow",
        "huge gamma",
        "infinite mean",
        "negative variance",
        "not a number",
        "variance below minus epsilon",
    ]
)
"""Cases where fused weights may pass a test on finite inputs, but lose what they stood for."""

_CASES: dict[str, Callable[[], Case]] = {}


def random(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.random.default_rng([len(shape), *shape, seed]).normal(size=shape).astype(dtype)


def norm(channels: int, prefix: str = "", *, dtype: Any = np.float32, seed: int = 0) -> Params:
    """Parameters s, b, m, v of one layer, none neutral."""
    generator = np.random.default_rng([channels, seed, 9])
    return {
        f"{prefix}s": generator.uniform(0.5, 2.0, channels).astype(dtype),
        f"{prefix}b": generator.normal(size=channels).astype(dtype),
        f"{prefix}m": generator.normal(size=channels).astype(dtype),
        f"{prefix}v": generator.uniform(0.3, 3.0, channels).astype(dtype),
    }


def build(
    interface: str,
    body: str,
    params: Params,
    *,
    opset: int = 17,
    ir_version: int = 8,
    functions: str = "",
) -> onnx.ModelProto:
    """Parse a graph and give it initializers."""
    imports = f'"" : {opset}' + (', "local" : 1' if functions else "")
    header = f"<ir_version: {ir_version}, opset_import: [{imports}]>"
    text = f"{header} g {interface} {{ {body} }} {functions}"
    model = onnx.parser.parse_model(text)
    for name, value in params.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
        if ir_version < 4:
            info = helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            model.graph.input.append(info)
    onnx.checker.check_model(model)
    return model


def add(
    name: str,
    model: Callable[[], onnx.ModelProto],
    left: int = 0,
    counted: frozenset[str] = frozenset([BN]),
) -> None:
    assert name not in _CASES, name
    _CASES[name] = lambda: Case(name, model(), left, counted)


def names() -> list[str]:
    return list(_CASES)


def case(name: str) -> Case:
    return _CASES[name]()


X2 = "(float[2,4] x) => (float[a,c] y)"
X4 = "(float[2,4,7,7] x) => (float[a,c,h,w] y)"
CONV = "t = Conv(x, w)"
AFTER = "y = BatchNormalization(t, s, b, m, v)"
W = {"w": random(6, 4, 3, 3)}


def conv(
    body: str,
    params: Params | None = None,
    *,
    interface: str = X4,
    channels: int = 6,
    weight: Array | None = None,
    **options: Any,
) -> Callable[[], onnx.ModelProto]:
    """Conv with weight w, whatever body, and one layer s, b, m, v."""
    made = {"w": W["w"] if weight is None else weight, **norm(channels), **(params or {})}
    return lambda: build(interface, body, made, **options)


def _producers() -> None:
    add("conv", conv(f"{CONV} {AFTER}"))
    add("conv with bias", conv(f"t = Conv(x, w, c) {AFTER}", {"c": random(6)}))
    add("conv padded", conv(f"t = Conv<pads=[1,1,1,1]>(x, w, c) {AFTER}", {"c": random(6)}))
    add("conv strided same", conv(f't = Conv<strides=[2,2], auto_pad="SAME_UPPER">(x, w) {AFTER}'))
    add("conv grouped", conv(f"t = Conv<group=2>(x, w) {AFTER}", weight=random(6, 2, 3, 3)))
    add(
        "conv depthwise multiplier",
        conv(f"t = Conv<group=4>(x, w) {AFTER}", weight=random(8, 1, 3, 3), channels=8),
    )
    add(
        "conv 1-D",
        conv(f"{CONV} {AFTER}", interface="(float[2,4,9] x) => (float[a,c,l] y)",
             weight=random(6, 4, 3)),
    )  # fmt: skip
    add(
        "conv 3-D",
        conv(f"{CONV} {AFTER}", interface="(float[2,4,5,5,5] x) => (float[a,c,d,h,w_] y)",
             weight=random(6, 4, 3, 3, 3)),
    )  # fmt: skip
    add("conv empty bias name", _empty_bias)
    for group in (1, 2, 4):
        add(
            f"transposed conv group {group}",
            conv(
                f"t = ConvTranspose<group={group}, strides=[2,2]>(x, w, c) {AFTER}",
                {"c": random(3 * group)},
                weight=random(4, 3, 3, 3),
                channels=3 * group,
            ),
        )
    add(
        "transposed conv without bias",
        conv(f"t = ConvTranspose<output_padding=[1,1], strides=[2,2]>(x, w) {AFTER}",
             weight=random(4, 6, 3, 3)),
    )  # fmt: skip
    add("opset 7 conv", conv(f"{CONV} {AFTER}", opset=7))
    add("opset 9 conv IR 3", conv(f"{CONV} {AFTER}", opset=9, ir_version=3))
    add(
        "opset 9 five outputs in training",
        conv(f"{CONV} y, mm, vv, sm, sv = BatchNormalization(t, s, b, m, v)", opset=9),
        left=1,
    )
    add("opset 22", conv(f"{CONV} {AFTER}", opset=22, ir_version=10))


def _empty_bias() -> onnx.ModelProto:
    model = conv(f"t = Conv(x, w, c) {AFTER}", {"c": random(6)})()
    model.graph.node[0].input[2] = ""
    return model


def _gemms() -> None:
    flat = "(float[5,4] x) => (float[a,c] y)"
    after = AFTER
    biases: dict[str, Array | None] = {
        "no": None,
        "scalar": np.array(0.7, np.float32),
        "one-element": random(1),
        "row": random(6),
        "1xN": random(1, 6),
        "column": random(5, 1),
        "full": random(5, 6),
    }
    for kind, bias in biases.items():
        reads = "x, w, c" if bias is not None else "x, w"
        params = {"c": bias} if bias is not None else {}
        add(
            f"gemm {kind} bias",
            conv(f"t = Gemm<alpha=0.5, beta=3.0>({reads}) {after}", params, interface=flat,
                 weight=random(4, 6), opset=13),
        )  # fmt: skip
    add(
        "gemm transB",
        conv(f"t = Gemm<transB=1, alpha=2.0>(x, w, c) {after}", {"c": random(6)}, interface=flat,
             weight=random(6, 4)),
    )  # fmt: skip
    add(
        "gemm transA",
        conv(f"t = Gemm<transA=1>(x, w) {after}", interface="(float[4,5] x) => (float[a,c] y)",
             weight=random(4, 6)),
    )  # fmt: skip
    add(
        "gemm beta 0",
        conv(f"t = Gemm<beta=0.0>(x, w, c) {after}", {"c": random(6)}, interface=flat,
             weight=random(4, 6)),
    )  # fmt: skip
    add(
        "gemm with computed bias",
        conv(f"c = Relu(d) t = Gemm(x, w, c) {after}",
             interface="(float[5,4] x, float[6] d) => (float[a,c_] y)", weight=random(4, 6)),
        left=1,
    )  # fmt: skip
    add("matmul", conv(f"t = MatMul(x, w) {after}", interface=flat, weight=random(4, 6)))
    add(
        "matmul add",
        conv(f"u = MatMul(x, w) t = Add(u, c) {after}", {"c": random(6)}, interface=flat,
             weight=random(4, 6)),
    )  # fmt: skip
    add(
        "add matmul swapped",
        conv(f"u = MatMul(x, w) t = Add(c, u) {after}", {"c": random(1, 6)}, interface=flat,
             weight=random(4, 6)),
    )  # fmt: skip
    add(
        "matmul constant on the left",
        conv(f"t = MatMul(w, x) {after}", interface="(float[2,4,5] x) => (float[a,c,l] y)",
             weight=random(6, 4)),
    )  # fmt: skip
    add(
        "matmul rank 3, channels not last",
        conv(f"t = MatMul(x, w) {after}", interface="(float[2,6,4] x) => (float[a,c,l] y)",
             weight=random(4, 6)),
        left=1,
    )  # fmt: skip
    add(
        "linear transpose",
        conv(f"u = MatMul(x, w) t = Transpose<perm=[0,2,1]>(u) {after}",
             interface="(float[2,5,4] x) => (float[a,c,l] y)", weight=random(4, 6)),
    )  # fmt: skip
    add(
        "linear add transpose",
        conv(f"u = MatMul(x, w) z = Add(u, c) t = Transpose<perm=[0,2,1]>(z) {after}",
             {"c": random(6)}, interface="(float[2,5,4] x) => (float[a,c,l] y)",
             weight=random(4, 6)),
    )  # fmt: skip
    add(
        "matmul of two inputs",
        conv(f"t = MatMul(x, z) {after}",
             interface="(float[5,4] x, float[4,6] z) => (float[a,c] y)"),
        left=1,
    )  # fmt: skip


def _between() -> None:
    per_channel = random(6, 1, 1, seed=4) + 2
    row = random(5, seed=5) + 2
    add("mul between", conv(f"{CONV} u = Mul(t, k) y = {BN}(u, s, b, m, v)", {"k": per_channel}))
    add(
        "mul of a row of width",
        conv(f"{CONV} u = Mul(t, k) y = {BN}(u, s, b, m, v)", {"k": row}),
        left=1,
    )
    add(
        "mul of a row of width that equals the channels",
        conv(f"{CONV} u = Mul(t, k) y = {BN}(u, s, b, m, v)", {"k": random(6, seed=5) + 2},
             interface="(float[2,4,8,8] x) => (float[a,c,h,w_] y)"),
        left=1,
    )  # fmt: skip
    add("scalar chain", conv(
        f"{CONV} u = Mul(t, k) z = Sub(u, j) q = Div(z, k) r = Add(j, q) y = {BN}(r, s, b, m, v)",
        {"k": np.array(1.7, np.float32), "j": np.array([0.3], np.float32)}))  # fmt: skip
    add("constant minus", conv(f"{CONV} u = Sub(k, t) y = {BN}(u, s, b, m, v)", {"k": per_channel}))
    add(
        "constant over",
        conv(
            f"p = Exp(x) {CONV.replace('x', 'p')} u = Div(k, t) y = {BN}(u, s, b, m, v)",
            {"k": per_channel},
            weight=np.abs(random(6, 4, 3, 3)) + 0.1,
        ),
        left=1,
    )
    add(
        "full-size addend",
        conv(f"{CONV} u = Add(t, k) y = {BN}(u, s, b, m, v)", {"k": random(1, 6, 5, 5)}),
        left=1,
    )
    add(
        "addend of more axes",
        conv(
            f"{CONV} u = Add(t, k) z = Squeeze(u, zero) y = {BN}(z, s, b, m, v)",
            {"k": random(1, 1, 6, 1, 1), "zero": np.array([0])},
        ),
        left=1,
    )
    add("identity", conv(f"{CONV} u = Identity(t) y = {BN}(u, s, b, m, v)"))
    add("dropout", conv(f"{CONV} u = Dropout(t) y = {BN}(u, s, b, m, v)"))
    add("dropout opset 9", conv(f"{CONV} u = Dropout(t) y = {BN}(u, s, b, m, v)", opset=9))
    add(
        "dropout mask used",
        conv(
            f"{CONV} u, k = Dropout(t) y = {BN}(u, s, b, m, v)",
            interface="(float[2,4,7,7] x) => (float[a,c,h,w_] y, bool[a,c,h,w_] k)",
        ),
        left=0,
    )
    add("relu between", conv(f"{CONV} u = Relu(t) y = {BN}(u, s, b, m, v)"), left=1)
    add(
        "average pool",
        conv(
            f"{CONV} u = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1]>(t) y = {BN}(u, s, b, m, v)"
        ),
    )
    add(
        "average pool that counts padding",
        conv(
            f"{CONV} u = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1>(t)"
            f" y = {BN}(u, s, b, m, v)"
        ),
        left=1,
    )
    add(
        "max pool",
        conv(f"{CONV} u = MaxPool<kernel_shape=[2,2]>(t) y = {BN}(u, s, b, m, v)"),
        left=1,
    )
    add("global average pool", conv(f"{CONV} u = GlobalAveragePool(t) y = {BN}(u, s, b, m, v)"))
    add(
        "pool and squeeze",
        conv(
            f"{CONV} u = GlobalAveragePool(t) z = Squeeze(u, axes) y = {BN}(z, s, b, m, v)",
            {"axes": np.array([2, 3])},
            interface="(float[2,4,7,7] x) => (float[a,c] y)",
        ),
    )
    add(
        "squeeze by attribute",
        conv(
            f"{CONV} u = GlobalAveragePool(t) z = Squeeze<axes=[-1,-2]>(u) y = {BN}(z, s, b, m, v)",
            interface="(float[2,4,7,7] x) => (float[a,c] y)",
            opset=11,
        ),
    )
    add(
        "unsqueeze",
        conv(
            f"{CONV} u = Unsqueeze(t, axes) y = {BN}(u, s, b, m, v)",
            {"axes": np.array([4])},
            interface="(float[2,4,7,7] x) => (float[a,c,h,w_,e] y)",
        ),
    )
    add(
        "unsqueeze before the channels",
        conv(
            f"{CONV} u = Unsqueeze(t, axes) y = {BN}(u, s, b, m, v)",
            {"axes": np.array([0])},
            interface="(float[6,4,7,7] x) => (float[e,a,c,h,w_] y)",
        ),
        left=1,
    )
    add(
        "reshape of single pixels to channels last",
        functools.partial(
            build,
            "(float[2,4,3,3] x) => (float[a,c,h,w_] y)",
            f"{CONV} r = Reshape(t, k) q = Transpose<perm=[0,3,1,2]>(r) y = {BN}(q, s, b, m, v)",
            {**W, **norm(6), "k": np.array([2, 1, 1, 6])},
        ),
    )
    add(
        "reshape that keeps channels",
        conv(
            f"{CONV} u = Reshape(t, shape) y = {BN}(u, s, b, m, v)",
            {"shape": np.array([0, 6, -1])},
            interface="(float[2,4,7,7] x) => (float[a,c,l] y)",
        ),
    )
    add(
        "reshape that mixes channels",
        conv(
            f"{CONV} u = Reshape(t, shape) y = {BN}(u, s, b, m, v)",
            {"shape": np.array([6, 6, -1])},
            interface="(float[6,4,7,7] x) => (float[a,c,l] y)",
            weight=random(6, 4, 3, 3),
        ),
    )
    add(
        "reshape to other channels of that number",
        conv(
            f"{CONV} u = Reshape(t, shape) y = {BN}(u, s, b, m, v)",
            {"shape": np.array([12, 6, -1])},
            interface="(float[2,4,8,8] x) => (float[a,c,l] y)",
        ),
        left=1,
    )
    add(
        "flatten of single pixels",
        conv(
            f"{CONV} u = Flatten(t) y = {BN}(u, s, b, m, v)",
            interface="(float[2,4,3,3] x) => (float[a,c] y)",
        ),
    )
    add(
        "transpose away and back",
        conv(
            f"{CONV} u = Transpose<perm=[0,2,3,1]>(t) z = Mul(u, k) "
            f"q = Transpose<perm=[0,3,1,2]>(z) y = {BN}(q, s, b, m, v)",
            {"k": random(6, seed=8) + 2},
        ),
    )
    add(
        "transpose to another axis",
        conv(
            f"{CONV} u = Transpose<perm=[0,2,1,3]>(t) y = {BN}(u, s, b, m, v)",
            interface="(float[2,4,8,7] x) => (float[a,h,c,w_] y)",
        ),
        left=1,
    )
    add(
        "concat of two convs",
        conv(
            f"t = Conv(x, w) u = Conv(x, w2) z = Concat<axis=1>(t, u) y = {BN}(z, s, b, m, v)",
            {"w2": random(3, 4, 3, 3)},
            channels=9,
        ),
    )
    add(
        "concat with the input",
        conv(
            f"t = Conv<pads=[1,1,1,1]>(x, w) z = Concat<axis=1>(t, x) y = {BN}(z, s, b, m, v)",
            channels=10,
        ),
        left=1,
    )
    add(
        "concat of samples",
        conv(
            f"t = Conv(x, w) u = Conv(x, w2) z = Concat<axis=0>(t, u) y = {BN}(z, s, b, m, v)",
            {"w2": random(6, 4, 3, 3, seed=1)},
        ),
        left=1,
    )
    add(
        "concat of one value twice",
        conv(f"t = Conv(x, w) z = Concat<axis=1>(t, t) y = {BN}(z, s, b, m, v)", channels=12),
        left=1,
    )
    add(
        "two layers",
        conv(f"{CONV} u = {BN}(t, s, b, m, v) y = {BN}(u, ps, pb, pm, pv)", norm(6, "p", seed=3)),
    )
    add(
        "two layers without weights",
        conv(
            f"u = {BN}(x, s, b, m, v) y = {BN}(u, ps, pb, pm, pv)", norm(4, "p", seed=3), channels=4
        ),
        left=1,
    )
    add(
        "two layers that share parameters",
        conv(f"{CONV} u = {BN}(t, s, b, m, v) y = {BN}(u, s, b, m, v)"),
    )


def _consumers() -> None:
    add("before conv", conv(f"t = {BN}(x, s, b, m, v) y = Conv(t, w)", channels=4))
    add(
        "before conv with bias and groups",
        conv(
            f"t = {BN}(x, s, b, m, v) y = Conv<group=2>(t, w, c)",
            {"c": random(6)},
            channels=4,
            weight=random(6, 2, 3, 3),
        ),
    )
    add(
        "before padded conv",
        conv(f"t = {BN}(x, s, b, m, v) y = Conv<pads=[1,1,1,1]>(t, w)", channels=4),
        left=1,
    )
    add(
        "before conv padded by name",
        conv(f't = {BN}(x, s, b, m, v) y = Conv<auto_pad="SAME_LOWER">(t, w)', channels=4),
        left=1,
    )
    unshifted = {"b": np.zeros(4, np.float32), "m": np.zeros(4, np.float32)}
    add(
        "before padded conv without shift",
        conv(f"t = {BN}(x, s, b, m, v) y = Conv<pads=[1,1,1,1]>(t, w)", unshifted, channels=4),
    )
    add(
        "before transposed conv",
        conv(
            f"t = {BN}(x, s, b, m, v) y = ConvTranspose(t, w)",
            channels=4,
            weight=random(4, 6, 3, 3),
        ),
        left=1,
    )
    flat = "(float[5,4] x) => (float[a,c_] y)"
    for transposed in (0, 1):
        add(f"before gemm transB {transposed}", conv(
            f"t = {BN}(x, s, b, m, v) y = Gemm<alpha=0.5, beta=2.0, transB={transposed}>(t, w, c)",
            {"c": random(6)}, channels=4, interface=flat,
            weight=random(6, 4) if transposed else random(4, 6)))  # fmt: skip
    add(
        "before gemm column bias",
        conv(
            f"t = {BN}(x, s, b, m, v) y = Gemm(t, w, c)",
            {"c": random(5, 1)},
            channels=4,
            interface=flat,
            weight=random(4, 6),
        ),
    )
    add(
        "before matmul",
        conv(
            f"t = {BN}(x, s, b, m, v) y = MatMul(t, w)",
            channels=4,
            interface=flat,
            weight=random(4, 6),
        ),
    )
    add(
        "before matmul on the right",
        conv(
            f"t = {BN}(x, s, b, m, v) y = MatMul(w, t)",
            channels=4,
            interface=flat,
            weight=random(6, 5),
        ),
        left=1,
    )
    add(
        "before matmul over the last axis",
        conv(
            f"t = {BN}(x, s, b, m, v) y = MatMul(t, w)",
            channels=4,
            interface="(float[2,4,4] x) => (float[a,c_,d] y)",
            weight=random(4, 6),
        ),
        left=1,
    )
    add(
        "before flatten gemm",
        conv(
            f"t = {BN}(x, s, b, m, v) u = Flatten(t) y = Gemm(u, w)",
            channels=4,
            interface="(float[2,4,3,3] x) => (float[a,c_] y)",
            weight=random(36, 6),
            opset=13,
        ),
    )
    add(
        "before flatten from axis 2",
        conv(
            f"t = {BN}(x, s, b, m, v) u = Flatten<axis=2>(t) y = Gemm(u, w)",
            channels=4,
            interface="(float[2,4,3,3] x) => (float[a,c_] y)",
            weight=random(9, 6),
            opset=13,
        ),
        left=1,
    )
    add(
        "before conv and relu",
        conv(
            f"t = {BN}(x, s, b, m, v) y = Conv(t, w) z = Relu(t)",
            channels=4,
            interface="(float[2,4,7,7] x) => (float[a,c_,h,w_] y, float[a,c_,h,w_] z)",
        ),
        left=1,
    )
    add(
        "as the weight of a conv",
        conv(
            f"t = {BN}(x, s, b, m, v) y = Conv(z, t)",
            channels=4,
            interface="(float[6,4,3,3] x, float[2,4,7,7] z) => (float[a,c_,h,w_] y)",
        ),
        left=1,
    )


def _uses() -> None:
    two = "(float[2,4,7,7] x) => (float[a,c,h,w_] y, float[a,c,h,w_] {})"
    add("conv output returned", conv(f"{CONV} {AFTER}", interface=two.format("t")), left=1)
    add(
        "conv output read twice",
        conv(f"{CONV} {AFTER} z = Relu(t)", interface=two.format("z")),
        left=1,
    )
    add(
        "weight shared by two convs",
        conv(f"{CONV} {AFTER} z = Conv(x, w)", interface=two.format("z")),
    )
    add(
        "weight shared by two layers",
        conv(
            f"{CONV} {AFTER} u = Conv(x, w) z = {BN}(u, ps, pb, pm, pv)",
            norm(6, "p", seed=2),
            interface=two.format("z"),
        ),
    )
    add(
        "parameters shared by two layers",
        conv(
            f"{CONV} {AFTER} u = Conv(x, w2) z = {BN}(u, s, b, m, v)",
            {"w2": random(6, 4, 3, 3, seed=1)},
            interface=two.format("z"),
        ),
    )
    add(
        "weight returned",
        conv(
            f"{CONV} {AFTER}",
            interface="(float[2,4,7,7] x) => (float[a,c,h,w_] y, float[6,4,3,3] w)",
        ),
    )
    add(
        "overridable scale",
        conv(f"{CONV} {AFTER}", interface="(float[2,4,7,7] x, float[6] s) => (float[a,c,h,w_] y)"),
        left=1,
    )
    add(
        "overridable weight",
        conv(
            f"{CONV} {AFTER}",
            interface="(float[2,4,7,7] x, float[6,4,3,3] w) => (float[a,c,h,w_] y)",
        ),
        left=1,
    )
    add(
        "scale fed",
        conv(
            f"{CONV} y = {BN}(t, k, b, m, v)",
            interface="(float[2,4,7,7] x, float[6] k) => (float[a,c,h,w_] y)",
        ),
        left=1,
    )
    add(
        "weight computed",
        conv(
            f"k = Relu(w) t = Conv(x, k) {AFTER}",
            interface="(float[2,4,7,7] x, float[6,4,3,3] w) => (float[a,c,h,w_] y)",
        ),
        left=1,
    )
    add("training mode", conv(f"{CONV} y, mm, vv = {BN}<training_mode=1>(t, s, b, m, v)"), left=1)
    add(
        "colliding names",
        conv(
            f"{CONV} {AFTER} z = Conv(x, w) u = Relu(z) r = Add(u, taken)",
            {"taken": random(1)},
            interface=two.format("r"),
        ),
    )
    add("weight behind identity", conv(f"k = Identity(w) t = Conv(x, k) {AFTER}"))
    add(
        "weight behind cast",
        conv(
            f"k = Cast<to=1>(w) t = Conv(x, k) {AFTER}", weight=random(6, 4, 3, 3, dtype=np.float16)
        ),
    )
    add(
        "weight behind transpose",
        conv(f"k = Transpose<perm=[3,2,0,1]>(w) t = Conv(x, k) {AFTER}", weight=random(3, 3, 4, 6)),
    )
    add(
        "weight of a constant node",
        conv(
            f"k = ConstantOfShape<value=float[1] {{0.5}}>(sh) t = Conv(x, k) {AFTER}",
            {"sh": np.array([6, 4, 3, 3])},
        ),
    )
    add("in an if body", lambda: _in_if(same=True))
    add("conv outside, layer in an if body", lambda: _in_if(same=False), left=1)
    add("in a loop body", _in_loop)
    add("in a scan body", _in_scan)
    add("loop, weight carried", lambda: _in_loop(carried=True), left=1)
    add("in a function", _in_function)


def _in_if(*, same: bool) -> onnx.ModelProto:
    inner = "t = Conv(x, w) " if same else ""
    outer = "" if same else "t = Conv(x, w) "
    return build(
        "(float[2,4,7,7] x, bool cond) => (float[a,c,h,w_] y)",
        f"{outer}y = If(cond) <then_branch = one () => (float[a,c,h,w_] p) "
        f"{{ {inner}p = {BN}(t, s, b, m, v) }}, else_branch = two () => (float[a,c,h,w_] q) "
        "{ q = Conv(x, w) }>",
        {**W, **norm(6)},
    )


def _in_loop(*, carried: bool = False) -> onnx.ModelProto:
    """Three rounds of a layer on its own output; the weight may change from round to round."""
    weight, first, last = ("k", ", w", ", k_last") if carried else ("w", "", "")
    given, returned = (", float[6,6,1,1] k", ", float[6,6,1,1] next") if carried else ("", "")
    change = "next = Add(k, w)" if carried else ""
    return build(
        "(float[2,6,4,4] x) => (float[a,c,h,w_] y)",
        f"y{last} = Loop(rounds, , x{first}) <body = round "
        f"(int64 i, bool go, float[2,6,4,4] x_in{given}) => "
        f"(bool go_on, float[2,6,4,4] x_out{returned}) "
        f"{{ go_on = Identity(go) {change} t = Conv(x_in, {weight}) "
        f"x_out = {BN}(t, s, b, m, v) }}>",
        {"w": random(6, 6, 1, 1), "rounds": np.array(3), **norm(6)},
    )


def _in_scan() -> onnx.ModelProto:
    return build(
        "(float[3,2,4,7,7] x) => (float[n,a,c,h,w_] y)",
        "y = Scan<num_scan_inputs = 1, body = one (float[2,4,7,7] x_in) => "
        f"(float[a,c,h,w_] x_out) {{ t = Conv(x_in, w) x_out = {BN}(t, s, b, m, v) }}>(x)",
        {**W, **norm(6)},
    )


def _in_function() -> onnx.ModelProto:
    return build(
        X4,
        "y = local.block(x)",
        {},
        functions="""
        <opset_import: ["" : 17], domain: "local">
        block (x) => (y) {
            w = Constant <value = float[1,4,1,1] {1.0, -2.0, 0.5, 3.0}> ()
            s = Constant <value = float[1] {2.0}> ()
            b = Constant <value = float[1] {0.5}> ()
            m = Constant <value = float[1] {1.0}> ()
            v = Constant <value = float[1] {4.0}> ()
            t = Conv (x, w)
            y = BatchNormalization (t, s, b, m, v)
        }
        """,
    )


def _numbers() -> None:
    half = "(float16[2,4,7,7] x) => (float16[a,c,h,w_] y)"
    f16 = norm(6, dtype=np.float16)
    add("float16", conv(f"{CONV} {AFTER}", f16, interface=half,
                        weight=random(6, 4, 3, 3, dtype=np.float16)))  # fmt: skip
    add(
        "float16 input, float32 parameters",
        conv(f"{CONV} {AFTER}", interface=half, weight=random(6, 4, 3, 3, dtype=np.float16)),
    )
    add(
        "float16 overflow",
        conv(
            f"{CONV} {AFTER}",
            {**f16, "v": np.full(6, 1e-7, np.float16)},
            interface=half,
            weight=random(6, 4, 3, 3, dtype=np.float16) * np.float16(100),
        ),
        left=1,
    )
    add(
        "float16 underflow",
        conv(
            f"{CONV} {AFTER}",
            {**f16, "s": np.full(6, 1e-5, np.float16)},
            interface=half,
            weight=random(6, 4, 3, 3, dtype=np.float16) * np.float16(1e-3),
        ),
        left=1,
    )
    add(
        "float64",
        conv(
            f"t = MatMul(x, w) {AFTER}",
            norm(6, dtype=np.float64),
            weight=random(4, 6, dtype=np.float64),
            interface="(double[5,4] x) => (double[a,c] y)",
        ),
    )
    add("zero gamma", conv(f"{CONV} {AFTER}", {"s": np.zeros(6, np.float32)}))
    add("negative gamma", conv(f"{CONV} {AFTER}", {"s": -np.ones(6, np.float32)}))
    add("zero variance", conv(f"{CONV} {AFTER}", {"v": np.zeros(6, np.float32)}))
    add(
        "negative variance",
        conv(f"{CONV} y = {BN}<epsilon=1.0>(t, s, b, m, v)", {"v": np.full(6, -0.5, np.float32)}),
        left=1,
    )
    add(
        "variance below minus epsilon",
        conv(f"{CONV} {AFTER}", {"v": np.full(6, -0.5, np.float32)}),
        left=1,
    )
    add("not a number", conv(f"{CONV} {AFTER}", {"b": np.full(6, np.nan, np.float32)}), left=1)
    add("infinite mean", conv(f"{CONV} {AFTER}", {"m": np.full(6, np.inf, np.float32)}), left=1)
    add("huge gamma", conv(f"{CONV} {AFTER}", {"s": np.full(6, 3e38, np.float32)},
                           weight=random(6, 4, 3, 3) * 10), left=1)  # fmt: skip
    add("one channel", conv(f"{CONV} {AFTER}", channels=1, weight=random(1, 4, 3, 3)))
    add("epsilon", conv(f"{CONV} y = {BN}<epsilon=0.3>(t, s, b, m, v)"))
    add(
        "parameter of constant nodes",
        conv(
            f"k = ConstantOfShape<value=float[1] {{2.0}}>(n) {CONV} y = {BN}(t, k, b, m, v)",
            {"n": np.array([6])},
        ),
    )


def _quantized() -> None:
    integers = np.random.default_rng(3).integers(-100, 100, (6, 4, 3, 3)).astype(np.int8)
    per_channel = np.random.default_rng(4).uniform(0.01, 0.02, 6).astype(np.float32)
    one = np.array(0.015, np.float32)
    points = np.arange(6).astype(np.int8)
    dequantized = f"w = DequantizeLinear<axis=0>(q, k, p) {CONV} {AFTER}"
    with_bias = f"w = DequantizeLinear<axis=0>(q, k, p) t = Conv(x, w, c) {AFTER}"

    def quantized(body: str, **params: Array) -> Callable[[], onnx.ModelProto]:
        return lambda: build(X4, body, {"q": integers, **norm(6), **params})

    add("weight dequantized per channel", quantized(dequantized, k=per_channel, p=points))
    add(
        "weight dequantized per channel, bias",
        quantized(with_bias, k=per_channel, p=points, c=random(6)),
    )
    add(
        "weight dequantized per tensor",
        quantized(dequantized.replace("<axis=0>", ""), k=one, p=np.array(3, np.int8)),
    )
    add(
        "weight dequantized without zero point",
        quantized(dequantized.replace(", p)", ")"), k=per_channel),
    )
    add(
        "weight dequantized along another axis",
        quantized(dequantized.replace("axis=0", "axis=1"), k=per_channel[:4], p=points[:4]),
        left=1,
    )
    add(
        "weight dequantized, negative gamma",
        quantized(dequantized, k=per_channel, p=points, s=-np.ones(6, np.float32)),
        left=1,
    )
    matrix = np.random.default_rng(5).integers(-100, 100, (4, 6)).astype(np.int8)
    columns = "w = DequantizeLinear<axis=1>(q, k, p)"
    rows = "w = DequantizeLinear<axis=0>(q, k, p)"
    for name, body, weight in (
        ("Gemm", f"{columns} t = Gemm(x, w, s) {AFTER}", matrix),
        ("transposed Gemm", f"{rows} t = Gemm<transB=1>(x, w) {AFTER}", matrix.T.copy()),
        ("MatMul", f"{columns} t = MatMul(x, w) {AFTER}", matrix),
    ):
        given: Params = {"q": weight, "k": per_channel, "p": points, **norm(6)}
        add(f"{name}, weight dequantized", functools.partial(build, X2, body, given))
    turned = integers.transpose(1, 0, 2, 3)
    add(
        "ConvTranspose, weight dequantized",
        quantized(
            f"{columns} t = ConvTranspose(x, w) {AFTER}", q=turned.copy(), k=per_channel, p=points
        ),
    )
    add(
        "grouped ConvTranspose, weight dequantized",
        quantized(
            f"{columns} t = ConvTranspose<group=2>(x, w) {AFTER}",
            q=turned[:, :3].copy(),
            k=per_channel[:3],
            p=points[:3],
        ),
        left=1,
    )
    add(
        "activation quantized between",
        quantized(
            f"w = DequantizeLinear<axis=0>(q, k, p) {CONV} a = QuantizeLinear(t, o, z) "
            f"d = DequantizeLinear(a, o, z) y = {BN}(d, s, b, m, v)",
            k=per_channel,
            p=points,
            o=np.array(0.1, np.float32),
            z=np.array(0, np.int8),
        ),
        left=1,
    )


_producers()
_gemms()
_between()
_consumers()
_uses()
_numbers()
_quantized()
