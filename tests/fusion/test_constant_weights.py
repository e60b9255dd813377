"""Weights and parameters that exporters compute from constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from syncbn_convert.files import model_file
from syncbn_convert.graph import constant_evaluation
from syncbn_convert.graph.constants import constant_tensor
from syncbn_convert.passes import FuseBatchNorm
from tests.fusion.cases import BN, X4, Array, build, norm, random
from tests.fusion.judge import batchnorms
from tests.fusion.test_robustness import fused

W = random(6, 4, 3, 3)
LAYER = f"t = Conv(x, k) y = {BN}(t, s, b, m, v)"
SPLIT = {"parts": np.array([6, 2])}


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


WEIGHTS: dict[str, tuple[str, dict[str, Array]]] = {
    "Slice": ("k = Slice(w, i, j)", {"w": random(9, 4, 3, 3), "i": ints(2), "j": ints(8)}),
    "Slice, steps": (
        "k = Slice(w, i, j, a, n)",
        {"w": random(12, 4, 3, 3), "i": ints(11), "j": ints(-13), "a": ints(0), "n": ints(-2)},
    ),
    "Gather": ("k = Gather(w, i)", {"w": random(9, 4, 3, 3), "i": ints(8, 0, 3, 1, 1, 2)}),
    "Gather, axis": ("k = Gather<axis=1>(w, i)", {"w": random(6, 9, 3, 3), "i": ints(5, 0, 8, 2)}),
    "Concat": ("k = Concat<axis=0>(w, w2)", {"w": W[:2], "w2": W[2:]}),
    "Split": ("k, r = Split<axis=0>(w, parts)", {"w": random(8, 4, 3, 3), **SPLIT}),
    "Split, second": (
        "r, k = Split<axis=0>(w, parts)",
        {"w": random(8, 4, 3, 3), "parts": ints(2, 6)},
    ),
    "Split, both read": (
        "k, r = Split<axis=0>(w, parts) q = Conv(x, r) unread = Relu(q)",
        {"w": random(8, 4, 3, 3), **SPLIT},
    ),
    "Expand": ("k = Expand(w, sh)", {"w": random(6, 1, 3, 3), "sh": ints(6, 4, 3, 3)}),
    "Exp": ("k = Exp(w)", {"w": W}),
    "Abs": ("k = Abs(w)", {"w": W}),
    "Max": ("k = Max(w, c)", {"w": W, "c": random(6, 1, 1, 1)}),
    "Min of three": ("k = Min(w, c, d)", {"w": W, "c": random(1), "d": W[:, ::-1].copy()}),
    "Clip": ("k = Clip(w, lo)", {"w": W, "lo": np.array(-0.5, np.float32)}),
    "Where": ("q = Less(w, c) k = Where(q, w, c)", {"w": W, "c": random(1)}),
    "Tile": ("k = Tile(w, n)", {"w": random(3, 4, 3, 3), "n": ints(2, 1, 1, 1)}),
    "Cast": ("k = Cast<to=1>(w)", {"w": W.astype(np.float64)}),
    "CastLike": ("k = CastLike(w, x)", {"w": W.astype(np.float64)}),
    "CastLike of what is computed": (
        "r = Relu(x) q = Sigmoid(r) k = CastLike(w, q)",
        {"w": W.astype(np.float16)},
    ),
    "Transpose and Reshape": (
        "q = Transpose(w) k = Reshape(q, sh)",
        {"w": random(9, 24), "sh": ints(6, 4, 3, -1)},
    ),
    "Flatten": ("q = Flatten(w) k = Reshape(q, sh)", {"w": W, "sh": ints(0, 4, 3, 3)}),
    "Squeeze, Unsqueeze": (
        "q = Squeeze(w, a) k = Unsqueeze(q, c)",
        {"w": random(1, 6, 4, 3), "a": ints(0), "c": ints(3)},
    ),
    "weight normalization": (
        "n = ReduceL2<axes=[1,2,3]>(w) q = Div(w, n) k = Mul(q, g)",
        {"w": W, "g": random(6, 1, 1, 1)},
    ),
    "weight standardization": (
        "a = ReduceMean<axes=[1,2,3]>(w) d = Sub(w, a) e = Mul(d, d) "
        "f = ReduceMean<axes=[1,2,3]>(e) h = Sqrt(f) k = Div(d, h)",
        {"w": W},
    ),
    "two matrices": ("q = MatMul(g, h) k = Reshape(q, sh)",
                     {"g": random(6, 2), "h": random(2, 36), "sh": ints(6, 4, 3, 3)}),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name: str) -> None:
    body, params = WEIGHTS[name]
    model = build(X4, f"{body} {LAYER}", {**params, **norm(6)})
    proto, records = fused(model)
    assert not batchnorms(proto), [record.reason for record in records]


BIASES = {
    "CastLike and Expand over Shape": "o = CastLike(zero, x) n = Shape<start=0, end=1>(w) "
    "c = Expand(o, n)",
    "over a Slice of Shape": "o = CastLike(zero, x) q = Shape(w) n = Slice(q, i0, i1) "
    "c = Expand(o, n)",
    "over a Gather of Shape": "q = Shape(w) n = Gather(q, i0) c = ConstantOfShape(n)",
    "channels of the input, whose batch is open": "q = Shape(z) n = Gather(q, i1) "
    "h = Add(n, two) c = ConstantOfShape(h)",
    "a part of the input's shape": "q = Shape(z) n = Slice(q, i1, i2) h = Add(n, two) "
    "c = Expand(one, h)",
    "Split of the input's shape": "q = Shape(z) a, n, e = Split(q, thirds) h = Add(n, two) "
    "c = Expand(one, h)",
    "by Size": "q = Flatten<axis=1>(w) n = Shape(q) g = Gather(n, i0) p = Size(b) "
    "h = Reshape(p, mone) e = Max(g, h) c = Expand(one, e)",
}


@pytest.mark.parametrize("name", BIASES)
def test_biases(name: str) -> None:
    params: dict[str, Array] = {
        "w": W,
        **norm(6),
        "zero": np.array(0.0, np.float64),
        "one": np.ones(1, np.float32),
        "two": ints(2),
        "i0": ints(0),
        "i1": ints(1),
        "i2": ints(2),
        "mone": ints(-1),
        "thirds": ints(1, 1, 2),
    }
    model = build(
        X4,
        f"z = Relu(x) {BIASES[name]} t = Conv(x, w, c) y = {BN}(t, s, b, m, v)",
        params,
    )
    before = {node.op_type for node in model.graph.node}
    proto, records = fused(model)
    assert not batchnorms(proto), [record.reason for record in records]
    after = [node.op_type for node in proto.graph.node if node.op_type != "Relu"]
    assert after[-1] == "Conv", before
    assert "Expand" not in after
    assert next(node for node in proto.graph.node if node.op_type == "Conv").input[1] == "w"


PARAMETERS = {
    "Exp": "p = Exp(s)",
    "Slice": "p = Slice(wide, i0, i6)",
    "Concat": "p = Concat<axis=0>(half, half)",
    "Expand": "n = Shape(s) p = Expand(one, n)",
    "Split": "p, r = Split<axis=0>(wide, parts)",
    "Softplus": "p = Softplus(s)",
}


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("role", "smv")
def test_parameters(name: str, role: str) -> None:
    layer = "y = BatchNormalization(t, {})".format(
        ", ".join("p" if other == role else other for other in "sbmv")
    )
    params: dict[str, Array] = {
        "w": W,
        **norm(6),
        "wide": np.abs(random(8)) + np.float32(0.5),
        "half": np.abs(random(3)) + np.float32(0.5),
        "one": np.ones(1, np.float32),
        "i0": ints(0),
        "i6": ints(6),
        "parts": ints(6, 2),
    }
    model = build(X4, f"{PARAMETERS[name]} t = Conv(x, w) {layer}", params)
    proto, records = fused(model)
    assert not batchnorms(proto), [record.reason for record in records]


@pytest.mark.parametrize(
    "body",
    [
        "k = Relu(given)",
        "k = Slice(given, i, j)",
        "k = Concat<axis=0>(given, none)",
        "q = Shape(given) r = Expand(one, q) p = Mul(r, given) k = Add(p, p)",
        "k = RandomNormalLike<seed=1.0>(own)",
    ],
)
def test_weights_that_depend_on_what_is_fed(body: str) -> None:
    params: dict[str, Array] = {
        **norm(6),
        "i": ints(0),
        "j": ints(6),
        "own": W,
        "none": W[:0],
        "one": np.ones(1, np.float32),
    }
    interface = "(float[2,4,7,7] x, float[6,4,3,3] given) => (float[a,c,h,w_] y)"
    model = build(interface, f"{body} {LAYER}", params)
    assert not FuseBatchNorm()(model_file.as_model(model)).modified


def _value(body: str, params: dict[str, Array], interface: str) -> tuple[ir.Value, ir.Model]:
    model = model_file.as_model(build(interface, body, params))
    return model.graph.outputs[0], model


@pytest.mark.parametrize(
    ("body", "known"),
    [
        ("q = Shape(x) y = Gather(q, i)", True),
        ("q = Shape(x) y = Slice(q, i, j)", True),
        ("y = Shape<start=1, end=2>(x)", True),
        ("y = Shape<start=1>(x)", False),
        ("q = Shape(x) y = Gather(q, o)", False),
        ("q = Shape(x) r = Abs(q) y = Gather(r, i)", False),
        ("p = Size(x) y = Reshape(p, i)", False),
    ],
)
def test_sizes_that_are_known(body: str, known: bool) -> None:
    params = {"i": ints(1), "j": ints(2), "o": ints(0)}
    value, model = _value(body, params, "(float[n,4,h,w] x) => (int64[a] y)")
    tensor = constant_tensor(value, model)
    assert (tensor.numpy().tolist() if tensor is not None else None) == ([4] if known else None)


LARGE = (1 << 10, (1 << 10) + 1)


@pytest.mark.parametrize(
    "body",
    [
        "y = Reshape(w, sh)",
        "q = Transpose(w) y = Identity(q)",
        "y, r = Split<axis=0>(w, halves)",
        "y = Slice(w, i, j)",
        "y = Concat<axis=1>(w, w)",
        "y = Abs(w)",
        "q = CastLike(w, half) y = Mul(w, w)",
        "y = ConstantOfShape(sh)",
        "y = Gather(w, rows)",
    ],
)
def test_large_results_wait_until_they_are_read(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    params: dict[str, Array] = {
        "w": random(*LARGE),
        "sh": ints(LARGE[1], LARGE[0]),
        "halves": ints(3, LARGE[0] - 3),
        "i": ints(2),
        "j": ints(5),
        "half": np.ones(1, np.float16),
        "rows": ints(3, 4),
    }
    value, model = _value(body, params, "(float[1] x) => (float[a,b] y)")
    runs: list[int] = []
    run = constant_evaluation._run

    def counted(*arguments: Any) -> Any:
        runs.append(max(tensor.size for tensor in arguments[2].values()))
        return run(*arguments)

    monkeypatch.setattr(constant_evaluation, "_run", counted)
    tensor = constant_tensor(value, model)
    assert tensor is not None
    assert max(runs, default=0) <= 2
    proto = model_file.to_proto(model)
    del proto.graph.input[:]
    (wanted,) = onnx.reference.ReferenceEvaluator(proto).run(None, {})
    np.testing.assert_array_equal(tensor.numpy(), wanted)
    assert tuple(tensor.shape.numpy()) == np.asarray(wanted).shape


@pytest.mark.parametrize("sizes", [(1 << 20, 1 << 20), (1 << 40,)])
def test_results_too_large_to_hold(sizes: tuple[int, ...]) -> None:
    params = {"sh": ints(*sizes), "one": np.ones(1, np.float32)}
    for body in ("y = ConstantOfShape(sh)", "y = Expand(one, sh)"):
        value, model = _value(body, params, "(float[1] x) => (float[a] y)")
        assert constant_tensor(value, model) is None


def test_large_weights_behind_operators_are_fused() -> None:
    """More than 1 Mi elements, through what only moves them."""
    w = random(1028, 1024)
    body = f"q = Reshape(w, sh) k = Transpose(q) t = MatMul(x, k) y = {BN}(t, s, b, m, v)"
    params: dict[str, Array] = {"w": w, "sh": ints(-1, 1024), **norm(1028)}
    model = build("(float[2,1024] x) => (float[a,c] y)", body, params)
    subject = model_file.as_model(model)
    FuseBatchNorm()(subject)
    proto = model_file.to_proto(subject)
    assert [node.op_type for node in proto.graph.node] == ["MatMul", "Add"]
    kept = onnx.numpy_helper.to_array(proto.graph.initializer[0]).astype(np.float64)
    scale = norm(1028)["s"] / np.sqrt(norm(1028)["v"].astype(np.float64) + np.float32(1e-5))
    np.testing.assert_array_equal(kept, (w.T * scale).astype(np.float32))
