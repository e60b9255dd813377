"""Models that say something of themselves that is not so, each refused where it is read."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx import helper as oh
from onnx import numpy_helper as onh

import syncbn_convert
from syncbn_convert.cli.main import main
from syncbn_convert.errors import ModelFileError, SyncBNError
from syncbn_convert.files import model_file
from tests.models import batchnorm_model, make_layer

Edit = Callable[[onnx.ModelProto], object]


def plain() -> onnx.ModelProto:
    return batchnorm_model(make_layer(3), ["n", 3, 4])


def form() -> onnx.ModelProto:
    found = syncbn_convert.convert(plain(), verify=False)
    assert isinstance(found, onnx.ModelProto)
    return found


def tensor(**fields: object) -> Edit:
    """Return an edit that makes the first parameter this tensor."""

    def edit(model: onnx.ModelProto) -> None:
        first = model.graph.initializer[0]
        first.CopyFrom(TensorProto(name=first.name, **fields))  # type: ignore[arg-type]

    return edit


def constant(node: Callable[[str], onnx.NodeProto]) -> Edit:
    """Return an edit that lets a node make the first parameter."""

    def edit(model: onnx.ModelProto) -> None:
        name = model.graph.initializer[0].name
        del model.graph.initializer[0]
        model.graph.initializer.append(onh.from_array(np.array([3]), "three"))
        model.graph.node.insert(0, node(name))

    return edit


def refers_to_no_function(model: onnx.ModelProto) -> None:
    attribute = onnx.AttributeProto(name="epsilon", type="FLOAT", ref_attr_name="e")
    model.graph.node[0].attribute.append(attribute)


def functions(count: int, calls: int) -> Edit:
    """Return an edit that adds functions, each of which calls the one before some times."""

    def edit(model: onnx.ModelProto) -> None:
        opsets = [oh.make_opsetid("", 17), oh.make_opsetid("own", 1)]
        for at in range(count):
            names = ["a", *[f"t{call}" for call in range(calls - 1)], "b"]
            kind = f"f{at - 1}" if at else "Neg"
            nodes = [
                oh.make_node(kind, [x], [y], domain="own" if at else "")
                for x, y in itertools.pairwise(names)
            ]
            model.functions.append(oh.make_function("own", f"f{at}", ["a"], ["b"], nodes, opsets))
        model.opset_import.append(opsets[1])

    return edit


def reads_a_file(model: onnx.ModelProto) -> None:
    node = oh.make_node("ImageReader", ["path"], ["image"], domain="ai.onnx.contrib")
    model.graph.initializer.append(onh.from_array(np.array([b"/etc/passwd"], object), "path"))
    model.graph.node.append(node)
    model.opset_import.append(oh.make_opsetid("ai.onnx.contrib", 1))


TEXT = onh.from_array(np.array([b"a"], object))
STRINGS = onh.from_array(np.array([b"a", b"b", b"c"], object))
FLOAT = TensorProto.FLOAT


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (tensor(data_type=FLOAT, dims=[2**62]), "which no memory holds"),
        (tensor(data_type=FLOAT, dims=[0, 2**62]), "which no memory holds"),
        (tensor(data_type=FLOAT, dims=[1] * 65), "65 axes"),
        (tensor(data_type=FLOAT, dims=[-3]), "negative size -3"),
        (tensor(data_type=FLOAT, dims=[2000]), "holds 0 numbers"),
        (tensor(data_type=FLOAT, dims=[2000], float_data=[1] * 5), "holds 5 numbers"),
        (tensor(data_type=FLOAT, dims=[3], float_data=[1] * 9), "holds 9 numbers"),
        (tensor(data_type=FLOAT, dims=[3], int64_data=[1] * 3), "not for its type"),
        (tensor(data_type=FLOAT, dims=[3], raw_data=bytes(12), float_data=[1] * 3), "twice"),
        (tensor(data_type=TensorProto.FLOAT16, dims=[3], int32_data=[1]), "holds 1 numbers"),
        (tensor(data_type=TensorProto.INT4, dims=[3], int32_data=[1]), "holds 1 numbers"),
        (tensor(data_type=TensorProto.UINT32, dims=[3], uint64_data=[1]), "holds 1 numbers"),
        (tensor(data_type=TensorProto.STRING, dims=[3], string_data=[b"a"]), "holds 1 numbers"),
        (
            tensor(data_type=TensorProto.STRING, dims=[3], string_data=[b"a"] * 3),
            "node 'norm' reads 's', which is text",
        ),
        (constant(lambda n: oh.make_node("Constant", [], [n], value=STRINGS)), "which is text"),
        (
            constant(lambda n: oh.make_node("Constant", [], [n], value_strings=["a", "b", "c"])),
            "which is text",
        ),
        (
            constant(
                lambda n: oh.make_node(
                    "ConstantOfShape",
                    ["three"],
                    [n],
                    value=TEXT,
                )
            ),
            "which is text",
        ),
        (
            lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 0),
            "input 'x' has no element type",
        ),
        (refers_to_no_function, "refers to the attribute 'e' of a function"),
        (functions(30, 2), "stand for more than 1000000 nodes"),
        (functions(300, 2), "stand for more than 1000000 nodes"),
        (
            lambda m: m.graph.node[0].attribute.append(
                onnx.AttributeProto(name="own", type="STRING", s=b"\xff")
            ),
            "attribute 'own' of node 'norm' is not UTF-8",
        ),
        (lambda m: m.graph.node[0].device_configurations.add(), "device configuration"),
        (
            lambda m: m.graph.node[0].device_configurations.add(configuration_id="none"),
            "device configuration 'none'",
        ),
        (reads_a_file, "ai.onnx.contrib::ImageReader"),
    ],
)
def test_what_is_refused(edit: Edit, words: str) -> None:
    model = plain()
    edit(model)
    with pytest.raises(ModelFileError, match=words):
        model_file.as_model(model)


def test_many_calls_of_few_nodes_are_read() -> None:
    model = plain()
    functions(90, 1)(model)
    model_file.as_model(model)


@pytest.mark.parametrize(
    "edit",
    [
        lambda m, text: m.metadata_props.add(key="k", value=text),
        lambda m, text: setattr(m.graph.node[0], "doc_string", text),
        lambda m, text: setattr(m.graph.input[0].type, "denotation", text),
        lambda m, text: m.graph.initializer[0].metadata_props.add(key=text, value="v"),
        lambda m, text: setattr(m, "producer_name", text),
        lambda m, text: m.training_info.add().update_binding.add(key=text, value="y"),
    ],
)
def test_text_that_is_not_utf8(edit: Callable[[onnx.ModelProto, str], object]) -> None:
    model = plain()
    edit(model, "zzqqzz")
    broken = onnx.ModelProto()
    broken.ParseFromString(model.SerializeToString().replace(b"zzqqzz", b"zz\xff\xffzz"))
    with pytest.raises(ModelFileError, match=r"(model\.\S+ is not UTF-8|valid ONNX model)"):
        model_file.as_model(broken)


def attribute(name: str, value: object) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        kept = [a for a in model.graph.node[0].attribute if a.name != name]
        del model.graph.node[0].attribute[:]
        model.graph.node[0].attribute.extend([*kept, oh.make_attribute(name, value)])

    return edit


def note(key: str, value: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        kept = [p for p in model.graph.node[0].metadata_props if p.key != key]
        del model.graph.node[0].metadata_props[:]
        model.graph.node[0].metadata_props.extend(kept)
        model.graph.node[0].metadata_props.add(key=key, value=value)

    return edit


def other_function(model: onnx.ModelProto) -> None:
    """Let the form's function pass its input on."""
    (function,) = (f for f in model.functions if f.name == "SyncBatchNormalization")
    pairs = zip((0, 3, 4), function.output, strict=True)
    nodes = [oh.make_node("Identity", [function.input[index]], [out]) for index, out in pairs]
    del function.node[:]
    function.node.extend(nodes)


def other_epsilon(model: onnx.ModelProto) -> None:
    """Let the form's function divide by a root of its own."""
    (function,) = (f for f in model.functions if f.name == "SyncBatchNormalization")
    for node in function.node:
        for entry in node.attribute:
            if entry.ref_attr_name == "epsilon":
                entry.CopyFrom(oh.make_attribute("epsilon", 0.5))


ATTRIBUTES = "syncbn_convert.attributes"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (attribute("epsilon", "text"), "attribute 'epsilon'"),
        (attribute("momentum", 1), "attribute 'momentum'"),
        (attribute("axis", "text"), "attribute 'axis'"),
        (attribute("axis", 2**62), "attribute 'axis' is far out of range"),
        (attribute("stash_type", 8), "stash_type"),
        (attribute("group_size", -1), "group_size"),
        (attribute("color", 1), "attribute 'color'"),
        (lambda m: m.graph.node[0].input.__delitem__(4), "4 inputs"),
        (lambda m: m.graph.node[0].input.__setitem__(3, ""), "input_mean"),
        (note(ATTRIBUTES, "[" * 100_000), "nested more than 200 deep"),
        (note(ATTRIBUTES, '{"epsilon": ' + "9" * 5000 + "}"), "is damaged"),
        (note(ATTRIBUTES, '{"epsilon": 1e999}'), "epsilon is no usual number"),
        (note(ATTRIBUTES, '{"epsilon": "x"}'), "epsilon is no usual number"),
        (note(ATTRIBUTES, '{"axis": 1}'), "unknown attribute 'axis'"),
        (note(ATTRIBUTES, "[]"), "a list where a dict belongs"),
        (note("syncbn_convert.layer_options", '{"momentum": 7}'), "momentum 7 is outside"),
        (note("syncbn_convert.layer_options", '{"colour": 7}'), "unknown option 'colour'"),
        (note("syncbn_convert.remarks", "[1]"), "no text"),
        (other_function, "of its own"),
        (other_epsilon, "of its own"),
    ],
)
def test_forms_that_are_none(edit: Edit, words: str) -> None:
    model = form()
    edit(model)
    with pytest.raises(SyncBNError, match=words):
        syncbn_convert.fold(model, verify=False)


def test_a_note_on_a_plain_node() -> None:
    model = plain()
    model.ir_version = 10
    note(ATTRIBUTES, "{}")(model)
    with pytest.raises(SyncBNError, match="holds a note of a training form"):
        syncbn_convert.fold(model, verify=False)


def test_a_model_that_contradicts_itself_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from syncbn_convert.commands import inspect

    model = plain()
    model.graph.initializer[1].dims[:] = [2]
    model.graph.initializer[1].raw_data = bytes(8)
    path = str(tmp_path / "m.onnx")
    onnx.save(model, path)

    def fails(*_: object, **__: object) -> None:
        model_file.load_model(path)
        raise IndexError("surprise")

    monkeypatch.setattr(inspect, "run", fails)
    assert main(["inspect", path]) == 2
    streams = capsys.readouterr()
    assert streams.err.count("\n") == 1
    assert "not a valid ONNX model" in streams.err
