"""What takes a normalization's place has its name, and what is written in a model stays."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import syncbn_convert
from syncbn_convert.files import model_file
from syncbn_convert.passes import FuseBatchNorm
from tests.fusion.cases import BN, X2, X4, Array, W, build, norm, random
from tests.fusion.judge import feeds_of, run
from tests.fusion.test_robustness import fused

LAYER = f"t = {BN}(c, s, b, m, v) y = Relu(t)"

BODIES: dict[str, tuple[str, str, dict[str, Array]]] = {
    "Conv": (X4, f"c = Conv(x, w) {LAYER}", W),
    "ConvTranspose": (X4, f"c = ConvTranspose(x, w) {LAYER}", {"w": random(4, 6, 3, 3)}),
    "Gemm": (X2, f"c = Gemm(x, w) {LAYER}", {"w": random(4, 6)}),
    "MatMul": (X2, f"c = MatMul(x, w) {LAYER}", {"w": random(4, 6)}),
    "MatMul, Transpose": (
        "(float[2,5,4] x) => (float[a,c_,l] y)",
        f"u = MatMul(x, w) c = Transpose<perm=[0,2,1]>(u) {LAYER}",
        {"w": random(4, 6)},
    ),
    "Identity": (X4, f"i = Conv(x, w) c = Identity(i) {LAYER}", W),
    "Mul": (X4, f"i = Conv(x, w) c = Mul(i, k) {LAYER}", {**W, "k": random(1)}),
    "two layers": (X4, f"i = Conv(x, w) c = {BN}(i, s, b, m, v) {LAYER}", W),
    "AveragePool": (
        X4,
        f"i = Conv(x, w) j = Identity(i) c = AveragePool<kernel_shape=[2,2]>(j) {LAYER}",
        W,
    ),
    "Concat": (
        X4,
        f"i = Conv(x, w) j = Conv(x, w2) c = Concat<axis=1>(i, j) {LAYER}",
        {"w": W["w"][:2], "w2": W["w"][2:]},
    ),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("returned", [False, True])
def test_names_stand_for_the_same_numbers(name: str, returned: bool) -> None:
    """Every value that both models have holds the same; that of the normalization is among them."""
    interface, body, params = BODIES[name]
    if returned:
        ending = interface.rpartition("=> ")[2].strip("()").replace(" y", " t")
        interface = interface.replace(" y)", f" y, {ending})")
    model = build(interface, body, {**params, **norm(6)})
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    proto, _ = fused(model)
    outputs = [{name for node in m.graph.node for name in node.output} for m in (model, proto)]
    shared = outputs[0] & outputs[1]
    assert {"t", "y"} <= shared
    found = []
    for candidate in (model, proto):
        probe = onnx.ModelProto()
        probe.CopyFrom(candidate)
        returns = {info.name for info in probe.graph.output}
        probe.graph.output.extend(onnx.ValueInfoProto(name=n) for n in sorted(shared - returns))
        found.append(run(probe, feeds_of(model, 0)))
    for value in shared:
        difference = abs(found[0][value] - found[1][value]).max()
        assert difference <= 64 * 2.0**-23 * abs(found[0][value]).max(), value
    assert not any(node.op_type == "Identity" for node in proto.graph.node)


def _annotated() -> onnx.ModelProto:
    """Return Conv, BatchNormalization, with something written about everything."""
    model = build(
        X4.replace(" y)", " t)"),
        f"c = Conv(x, w, k) t = {BN}(c, s, b, m, v)",
        {**W, "k": random(6), "scale_t": random(1), "zero_t": random(1), **norm(6)},
    )
    graph = model.graph
    for node, name in zip(graph.node, ("conv", "bn"), strict=True):
        node.name, node.doc_string = name, f"about {name}"
        node.metadata_props.add(key=f"key_{name}", value=name)
        node.metadata_props.add(key="key", value=name)
    graph.value_info.append(
        onnx.helper.make_tensor_value_info("c", 1, [2, 6, 5, 5], doc_string="about c")
    )
    graph.output[0].doc_string = "about t"
    graph.output[0].metadata_props.add(key="key", value="t")
    for tensor in graph.initializer:
        tensor.doc_string = f"about {tensor.name}"
        tensor.metadata_props.add(key="key", value=tensor.name)
    for name in ("c", "t", "w"):
        annotation = graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=f"scale_{name}")
    return model


def test_what_is_written_stays(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    onnx.save(_annotated(), source)
    path, _ = syncbn_convert.fuse_file(source)
    assert path is not None
    graph = onnx.load(path).graph
    (node,) = graph.node
    assert (node.name, node.doc_string) == ("conv", "about conv")
    written = {entry.key: entry.value for entry in node.metadata_props}
    assert written == {"key": "conv", "key_conv": "conv", "key_bn": "bn"}
    (output,) = graph.output
    assert (output.name, output.doc_string) == ("t", "about t")
    assert [(entry.key, entry.value) for entry in output.metadata_props] == [("key", "t")]
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for name in ("w", "k"):
        assert tensors[name].doc_string == f"about {name}"
        assert [entry.value for entry in tensors[name].metadata_props] == [name]
    annotations = {
        annotation.tensor_name: annotation.quant_parameter_tensor_names[0].value
        for annotation in graph.quantization_annotation
    }
    assert annotations == {"t": "scale_t", "w": "scale_w"}


def test_what_is_written_about_a_weight_that_others_read() -> None:
    model = _annotated()
    model.graph.node.append(onnx.helper.make_node("Conv", ["x", "w"], ["z"], name="other"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["a", "b", "c_", "d"]))
    proto, _ = fused(model)
    copy = next(tensor for tensor in proto.graph.initializer if tensor.name == "w/fused")
    assert copy.doc_string == "about w"
    assert [entry.value for entry in copy.metadata_props] == ["w"]


def test_the_first_differing_node_is_the_one_that_differs() -> None:
    """Fused layers in front of it, whose Conv holds other numbers by design, are not blamed."""
    body = (
        f"c = Conv(x, w) t = {BN}(c, s, b, m, v) r = Relu(t) e = Conv(r, w2) "
        f"f = {BN}(e, s, b, m, v) y = Relu(f)"
    )
    params = {**W, "w2": random(6, 6, 3, 3), **norm(6)}
    model = build(X4, body, params)
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensor = next(t for t in changed.graph.initializer if t.name == "w2")
    tensor.CopyFrom(onnx.numpy_helper.from_array(params["w2"] * 1.2, "w2"))
    broken = syncbn_convert.fuse(changed, verify=False)
    report = syncbn_convert.verify(model, broken)
    assert not report.equal
    assert report.first_difference is not None
    assert "node_f" in report.first_difference


def test_identities_and_constants_that_nothing_reads_go() -> None:
    body = (
        "i = Identity(x) c = Conv(i, w) d = Identity(c) e = Identity(d) "
        f"t = {BN}(e, s, b, m, v) z = Constant<value_float=1.0>() "
        "q = Identity(z) y = Relu(t)"
    )
    proto, _ = fused(build(X4, body, {**W, **norm(6)}))
    assert [node.op_type for node in proto.graph.node] == ["Identity", "Conv", "Relu"]


def test_nothing_goes_where_nothing_is_fused() -> None:
    body = "q = Constant<value_float=1.0>() r = Identity(x) y = Relu(r)"
    subject = model_file.as_model(build(X4, body, {}))
    assert not FuseBatchNorm()(subject).modified
    assert [node.op_type for node in subject.graph] == ["Constant", "Identity", "Relu"]


def test_constants_of_a_function_go() -> None:
    """And an identity behind the layer, which the caller does not see, stays."""
    function = """
    <opset_import: ["" : 17], domain: "local">
    block (x) => (y) {
        w = Constant <value = float[1,4,1,1] {1.0, -2.0, 0.5, 3.0}> ()
        s = Constant <value = float[1] {2.0}> ()
        b = Constant <value = float[1] {0.5}> ()
        m = Constant <value = float[1] {1.0}> ()
        v = Constant <value = float[1] {4.0}> ()
        n = Constant <value = float[1] {4.0}> ()
        c = Conv (x, w)
        i = Identity (c)
        t = BatchNormalization (i, s, b, m, v)
        y = Identity (t)
    }
    """
    proto, _ = fused(build(X4, "y = local.block(x)", {}, functions=function))
    nodes = [node.op_type for node in proto.functions[0].node]
    assert nodes == ["Constant", "Constant", "Conv", "Identity"]
