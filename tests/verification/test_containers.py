"""Sequences, maps and optionals, in and out: compared tensor by tensor, key by key."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest

import syncbn_convert
from tests.models import make_layer
from tests.verification.samples import changed, compare, parse, scaled

FLOAT = onnx.TensorProto.FLOAT
Damage = Callable[[onnx.ModelProto], onnx.ModelProto]
_LAYER = make_layer(4)
_VALUES = dict(zip("sbmv", (_LAYER.scale, _LAYER.bias, _LAYER.mean, _LAYER.var), strict=True))


def _net(
    interface: str, before: str, after: str, declared: str = "", opset: int = 18
) -> onnx.ModelProto:
    return parse(
        f"""<ir_version: 10, opset_import: ["" : {opset}, "ai.onnx.ml" : 1]>
        g {interface}
        <float[4,3,3,3] w, float[4] s, float[4] b, float[4] m, float[4] v{declared}> {{
          {before} c = Conv(x, w) [bn] h = BatchNormalization(c, s, b, m, v) {after}
        }}""",
        0,
        **_VALUES,
        sizes=np.array([1, 3]),
        big=np.array(1000.0),
        small=np.array(1.0),
        one=np.array(1),
    )


X = "(float[N,3,6,6] x)"


def _sequence() -> onnx.ModelProto:
    after = """u, rest = Split<axis = 1>(h, sizes) d = Mul(u, small) g2 = Mul(h, big)
        q = SequenceConstruct(d, g2)"""
    declared = ", int64[2] sizes, float big, float small"
    return _net(f"{X} => (seq(float[N,p,4,4]) q)", "", after, declared)


def _split() -> onnx.ModelProto:
    after = "q = SplitToSequence<axis = 0>(h, one)"
    return _net(f"{X} => (seq(float[p,4,4,4]) q)", "", after, ", int64 one")


def _optional() -> onnx.ModelProto:
    return _net(f"{X} => (optional(float[N,4,4,4]) q)", "", "q = Optional(h)")


def _fed_sequence() -> onnx.ModelProto:
    interface = "(seq(float[N,3,6,6]) xs) => (float[N,4,4,4] h)"
    return _net(interface, "x = SequenceAt(xs, one)", "", ", int64 one")


def _fed_optional() -> onnx.ModelProto:
    return _net(
        "(optional(float[N,3,6,6]) xo) => (float[N,4,4,4] h)", "x = OptionalGetElement(xo)", ""
    )


def _row(key: int) -> onnx.TypeProto:
    row: onnx.TypeProto = oh.make_map_type_proto(key, oh.make_tensor_type_proto(FLOAT, []))
    return row


def _maps(labels: list[str]) -> onnx.ModelProto:
    model = _net(f"{X} => (float[N,4] y)", "", "a = GlobalAveragePool(h) y = Flatten(a)")
    model.graph.node.append(
        oh.make_node("ZipMap", ["y"], ["q"], domain="ai.onnx.ml", classlabels_strings=labels)
    )
    kind = oh.make_sequence_type_proto(_row(onnx.TensorProto.STRING))
    model.graph.output[0].CopyFrom(oh.make_value_info("q", kind))
    return model


def _fed_map() -> onnx.ModelProto:
    model = parse(
        """<ir_version: 10, opset_import: ["" : 17, "ai.onnx.ml" : 1]>
        g (float[1,4] d) => (float[1,4] h) <float[4] s, float[4] b, float[4] m, float[4] v> {
          [bn] h = BatchNormalization(d, s, b, m, v)
        }""",
        0,
        **_VALUES,
    )
    words = ["a", "b", "c", "e"]
    model.graph.node.insert(
        0,
        oh.make_node(
            "DictVectorizer", ["words"], ["d"], domain="ai.onnx.ml", string_vocabulary=words
        ),
    )
    model.graph.input[0].CopyFrom(oh.make_value_info("words", _row(onnx.TensorProto.STRING)))
    return model


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "sequence": _sequence,
    "sequence of any length": _split,
    "optional": _optional,
    "sequence that is fed": _fed_sequence,
    "optional that is fed": _fed_optional,
    "maps": lambda: _maps(["a", "b", "c", "d"]),
    "map that is fed": _fed_map,
}


@pytest.mark.parametrize("kind", MODELS)
def test_equal_and_damaged(kind: str, tmp_path: Path) -> None:
    model = MODELS[kind]()
    assert compare(tmp_path, model, model).equal
    report = compare(tmp_path, model, scaled(model, "s", 1.01))
    assert not report.equal
    assert 0.001 < report.max_relative_error < 0.1
    assert "node 'bn'" in str(report.first_difference)


@pytest.mark.parametrize("kind", ["sequence of any length", "sequence that is fed", "maps"])
def test_rewritten_and_verified(kind: str) -> None:
    model = MODELS[kind]()
    form, report = syncbn_convert.convert_with_report(model)
    assert report.verified
    assert isinstance(form, onnx.ModelProto)
    fused = syncbn_convert.fuse(model, verify=False)
    assert isinstance(fused, onnx.ModelProto)
    assert fused.graph.output == model.graph.output
    assert fused.graph.input == model.graph.input


def test_a_map_that_is_fed_is_kept() -> None:
    model = _fed_map()
    form = syncbn_convert.convert(model)
    assert isinstance(form, onnx.ModelProto)
    assert form.graph.input[0] == model.graph.input[0]


def test_a_small_tensor_beside_a_large_one_counts(tmp_path: Path) -> None:
    model = _sequence()
    report = compare(tmp_path, model, scaled(model, "small", 1.0001))
    unequal = [output.name for output in report.outputs if not output.equal]
    assert unequal == ["q[0]"]


def _longer(model: onnx.ModelProto) -> onnx.ModelProto:
    longer = onnx.ModelProto()
    longer.CopyFrom(model)
    (node,) = (node for node in longer.graph.node if node.op_type == "SequenceConstruct")
    node.input.append("h")
    return longer


def _other_labels(model: onnx.ModelProto) -> onnx.ModelProto:
    del model
    return _maps(["a", "b", "c", "z"])


@pytest.mark.parametrize(
    ("model", "damage", "told"),
    [
        (_sequence, _longer, "sequence of 3, not sequence of 2"),
        (_sequence, lambda m: changed(m, "sizes", lambda a: a[::-1].copy()), r"\[2, 3, 4, 4\]"),
        (lambda: _maps(["a", "b", "c", "d"]), _other_labels, "'c', 'z', not"),
    ],
)
def test_other_structure(
    model: Callable[[], onnx.ModelProto], damage: Damage, told: str, tmp_path: Path
) -> None:
    reference = model()
    report = compare(tmp_path, reference, damage(reference))
    assert not report.equal
    details = " ".join(output.detail for output in report.outputs)
    assert re.search(told, details)
