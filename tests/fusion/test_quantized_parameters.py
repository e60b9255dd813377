"""Parameters, constants and biases behind DequantizeLinear: constants as others are."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import syncbn_convert
from tests.fusion.cases import BN, X4, Array, W, build, norm
from tests.fusion.judge import require_same
from tests.fusion.test_robustness import fused


def _quantized(values: Array, dtype: Any = np.uint8) -> tuple[Array, Array, Array]:
    """Quantize to the whole range of a type; return numbers, scale and zero point."""
    limits = np.iinfo(dtype)
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    scale = np.float32((high - low) / (int(limits.max) - int(limits.min)))
    zero = np.clip(np.round(limits.min - low / scale), limits.min, limits.max)
    numbers = np.clip(np.round(values / scale) + zero, limits.min, limits.max)
    return numbers.astype(dtype), np.asarray(scale), np.asarray(zero.astype(dtype))


def _params(names: str, dtype: Any = np.uint8) -> tuple[dict[str, Array], str]:
    params, text = {**W, **norm(6)}, ""
    for name in names:
        numbers, scale, zero = _quantized(params.pop(name), dtype)
        params |= {f"{name}q": numbers, f"{name}s": scale, f"{name}z": zero}
        text += f" {name} = DequantizeLinear({name}q, {name}s, {name}z)"
    return params, text


@pytest.mark.parametrize("names", ["s", "b", "m", "v", "sbmv"])
def test_parameters_are_converted_folded_and_fused(names: str) -> None:
    params, text = _params(names)
    model = build(X4, f"{text} c = Conv(x, w) y = {BN}(c, s, b, m, v)", params)
    assert syncbn_convert.inspect(model).nodes[0].convertible
    folded = syncbn_convert.fold(syncbn_convert.convert(model, verify=False), verify=False)
    assert isinstance(folded, onnx.ModelProto)
    require_same(model, folded)
    proto, _ = fused(model)
    assert [node.op_type for node in proto.graph.node] == ["Conv"]


def test_what_a_tool_quantizes_and_dequantizes_again() -> None:
    params, _ = _params("s")
    params["s"] = norm(6)["s"]
    text = "sn = QuantizeLinear(s, ss, sz) sd = DequantizeLinear(sn, ss, sz)"
    proto, _ = fused(build(X4, f"{text} c = Conv(x, w) y = {BN}(c, sd, b, m, v)", params))
    assert [node.op_type for node in proto.graph.node] == ["Conv"]


def test_operators_of_onnx_runtime() -> None:
    """Of its own domain, as it writes them for narrow types below opset 21."""
    params, text = _params("sm", np.int8)
    body = f"{text} c = Conv(x, w) y = {BN}(c, s, b, m, v)"
    model = build(X4, body, params)
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            node.domain = "com.microsoft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    result, report = syncbn_convert.fuse_with_report(model)
    assert report.verified
    assert isinstance(result, onnx.ModelProto)
    assert [node.op_type for node in result.graph.node] == ["Conv"]


WEIGHTS = {"wq": np.arange(6 * 4 * 9).reshape(6, 4, 3, 3).astype(np.int8), "ws": np.float32(0.01)}


def test_a_bias_and_a_map_behind_quantized_weights() -> None:
    body = f"""w = DequantizeLinear(wq, ws) k = DequantizeLinear(kq, ks)
        f = DequantizeLinear(fq, ks) c = Conv(x, w, k) t = Mul(c, f) y = {BN}(t, s, b, m, v)"""
    params = {
        **{name: np.asarray(value) for name, value in WEIGHTS.items()},
        **norm(6),
        "kq": np.array([100, -7, 3, 50, 0, 9], np.int32),
        "ks": np.array(0.02, np.float32),
        "fq": np.array([3, 4, 5, 6, 7, 8], np.int8).reshape(6, 1, 1),
    }
    params["s"] = np.abs(params["s"]) + np.float32(0.1)
    proto, _ = fused(build(X4, body, params))
    assert sorted(node.op_type for node in proto.graph.node) == ["Conv", "DequantizeLinear"]


def test_quantized_weights_after_a_map_stay_quantized() -> None:
    body = f"w = DequantizeLinear(wq, ws) t = {BN}(x, s, b, m, v) y = Conv(t, w)"
    model = build(X4, body, {**{n: np.asarray(a) for n, a in WEIGHTS.items()}, **norm(4)})
    proto, (record,) = fused(model)
    assert record.action == "kept"
    assert "is quantized, and fused it would not be" in record.reason
    assert len(proto.graph.node) == 3
