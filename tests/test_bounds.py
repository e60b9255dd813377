"""What a small file or pattern asks for is bounded, or refused with the reason."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from syncbn_convert.errors import ModelFileError, UsageError, VerificationError
from syncbn_convert.files import expansion
from syncbn_convert.files.model_file import load_model, map_model
from syncbn_convert.graph import constant_evaluation
from syncbn_convert.graph.constants import constant_tensor
from syncbn_convert.options.patterns import check_patterns, matches
from syncbn_convert.options.verifying import VerifyOptions
from syncbn_convert.passes.recognition import cones
from syncbn_convert.verification import verify_files


def _functions(depth: int, calls: int) -> onnx.ModelProto:
    """Return a model whose functions call the one before several times."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    functions = []
    for level in range(depth):
        nodes, value = [], "x"
        for call in range(calls):
            name = "y" if call == calls - 1 else f"t{call}"
            kind = ("Relu", "") if level == 0 else (f"f{level - 1}", "f")
            nodes.append(helper.make_node(kind[0], [value], [name], domain=kind[1]))
            value = name
        functions.append(helper.make_function("f", f"f{level}", ["x"], ["y"], nodes, imports))
    sizes = [2, 3]
    graph = helper.make_graph(
        [helper.make_node(f"f{depth - 1}", ["x"], ["y"], domain="f")],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, sizes)],
    )
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10)


@pytest.mark.parametrize(("depth", "calls"), [(30, 2), (60, 2), (12, 4), (3, 400)])
def test_functions_that_call_functions(depth: int, calls: int, tmp_path: Path) -> None:
    onnx.save(_functions(depth, calls), tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match=r"more than 262144 nodes \('f\d+' alone for \d+\)"):
        load_model(tmp_path / "m.onnx")


@pytest.mark.parametrize(("depth", "calls"), [(1, 1), (9, 2), (200, 1), (2, 100)])
def test_functions_that_come_to_little(depth: int, calls: int) -> None:
    assert expansion.fault(_functions(depth, calls)) == ""


def test_functions_that_call_themselves() -> None:
    model = _functions(3, 1)
    model.functions[0].node[0].op_type, model.functions[0].node[0].domain = "f2", "f"
    assert "more than 262144 nodes" in expansion.fault(model)


@pytest.mark.parametrize("content", [bytes(1 << 16), b"\x08\x08" + bytes(99)])
def test_fields_that_no_model_has(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelFileError, match="its protobuf cannot be parsed"):
        map_model(tmp_path / "m.onnx")


def _tower(depth: int) -> tuple[ir.Model, ir.Value]:
    """Return a model whose constants are each made of two that share all below them."""
    one = two = ir.val("c", const_value=ir.tensor(np.ones(3, np.float32), name="c"))
    initializer, nodes = one, []
    for level in range(depth):
        nodes += [
            ir.node(kind, [one, two], name=f"{kind}{level}", num_outputs=1)
            for kind in ("Add", "Mul")
        ]
        one, two = (node.outputs[0] for node in nodes[-2:])
        one.name, two.name = f"a{level}", f"m{level}"
    graph = ir.Graph(
        [], [one], nodes=nodes, initializers=[initializer], opset_imports={"": 17}, name="g"
    )
    return ir.Model(graph, ir_version=10), one


@pytest.mark.parametrize("depth", [4, 15])
def test_constants_that_share_what_they_are_made_of(
    depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, made = constant_evaluation.evaluate, []

    def counted(
        node: ir.Node, value: ir.Value, operands: constant_evaluation.Operands, opset: int
    ) -> ir.TensorProtocol | None:
        made.append(node.name)
        return evaluate(node, value, operands, opset)

    monkeypatch.setattr(constant_evaluation, "evaluate", counted)
    model, top = _tower(depth)
    for _ in range(3):
        assert constant_tensor(top, model) is not None
    assert len(made) == len(set(made)) == 2 * depth - 1


def test_a_constant_follows_what_it_is_made_of() -> None:
    model, top = _tower(2)
    before = constant_tensor(top, model)
    value = model.graph.initializers["c"]
    value.const_value = ir.tensor(np.full(3, 2, np.float32), name="c")
    after = constant_tensor(top, model)
    assert before is not None
    assert after is not None
    assert before.numpy().tolist() == [3, 3, 3]  # (1 + 1) + (1 * 1)
    assert after.numpy().tolist() == [8, 8, 8]  # (2 + 2) + (2 * 2)


@pytest.mark.parametrize("count", [1, 40])
def test_constants_that_would_fill_the_memory(count: int) -> None:
    sizes = [1 << 15, 1 << 15] if count == 1 else [1 << 12, 1 << 12]
    shape = ir.val("s", const_value=ir.tensor(np.array(sizes, np.int64), name="s"))
    nodes = [ir.node("ConstantOfShape", [shape], name=f"n{i}") for i in range(count)]
    for index, node in enumerate(nodes):
        node.outputs[0].name = f"v{index}"
    graph = ir.Graph(
        [],
        [nodes[0].outputs[0]],
        nodes=nodes,
        initializers=[shape],
        opset_imports={"": 17},
        name="g",
    )
    model = ir.Model(graph, ir_version=10)
    found = [constant_tensor(node.outputs[0], model) for node in nodes]
    elements = sum(tensor.size for tensor in found if tensor is not None)
    assert elements == (0 if count == 1 else 1 << 27)


def test_a_cone_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    x = y = ir.val("x", ir.DataType.FLOAT, ["n", 3, 4])
    two = ir.val("k", const_value=ir.tensor(np.full((3, 1), 2, np.float32), name="k"))
    nodes = []
    for _ in range(100):
        nodes.append(ir.node("Add", [y, two]))
        y = nodes[-1].outputs[0]
    graph = ir.Graph([x], [y], nodes=nodes, initializers=[two], opset_imports={"": 17}, name="g")
    forms = cones.ConstantForms(ir.Model(graph, ir_version=10))
    monkeypatch.setattr(cones, "_LONGEST_WAY", 10)
    assert len(cones.Cone(graph, x, 3, 1, forms).forms) == 11


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("(a+)+$", "a" * 40 + "b"),
        ("(a|aa)+$", "a" * 60 + "b"),
        ("(a+a+)+c", "a" * 40),
    ],
)
def test_patterns_that_take_too_long(pattern: str, name: str) -> None:
    with pytest.raises(UsageError, match="takes too long to be searched in 'aaaa") as caught:
        matches((pattern,), name)
    assert "\n" not in str(caught.value)


def test_patterns_outside_the_main_thread() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(matches(("^a+$",), "aaa")))
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.parametrize("pattern", ["a{99999999999}", "(" * 400, "a" * 1001, "["])
def test_patterns_that_are_none(pattern: str) -> None:
    with pytest.raises(UsageError, match=r"is not a regular expression|characters; give several"):
        check_patterns([pattern])


EXPAND = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[n, 3] x) => (float[n, 3] y) <int64[1] sizes = {700000000}, float[1] one = {1}>
{
    large = Expand(one, sizes)
    most = ReduceMax <keepdims = 0> (large)
    y = Add(x, most)
}
"""


@pytest.mark.parametrize(("memory", "told"), [(None, "2.0"), (0.5, "0.5")])
def test_verification_has_a_budget(memory: float | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(EXPAND), path)
    with pytest.raises(VerificationError) as caught:
        verify_files(path, path, VerifyOptions(memory=memory, seeds=1))
    assert f"more than {told} GiB would be needed to run it" in str(caught.value)


def test_inputs_that_would_fill_the_memory(tmp_path: Path) -> None:
    count = 60
    inputs = [
        helper.make_tensor_value_info(f"x{i}", onnx.TensorProto.FLOAT, [33_000_000])
        for i in range(count)
    ]
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [33_000_000])
    node = helper.make_node("Sum", [f"x{i}" for i in range(count)], ["y"])
    graph = helper.make_graph([node], "g", inputs, [output])
    path = tmp_path / "m.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    with pytest.raises(VerificationError, match="134217728 elements of all inputs are the most"):
        verify_files(path, path)
