"""Training forms that other tools have renamed, joined or trimmed, and what only looks like one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.compose
import onnx.helper as oh
import pytest

import syncbn_convert
from syncbn_convert import ConversionError, SyncBNError
from tests.harness import run
from tests.lenient_models import convolution
from tests.models import batchnorm_model, make_layer

X = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
Edit = Callable[[onnx.ModelProto], onnx.ModelProto]


def _form() -> onnx.ModelProto:
    form = syncbn_convert.convert(convolution(), verify=False)
    assert isinstance(form, onnx.ModelProto)
    return form


def _node(form: onnx.ModelProto) -> onnx.NodeProto:
    (node,) = (node for node in form.graph.node if "SyncBatchNorm" in node.op_type)
    assert isinstance(node, onnx.NodeProto)
    return node


def _prefixed(form: onnx.ModelProto, **what: bool) -> onnx.ModelProto:
    renamed: onnx.ModelProto = onnx.compose.add_prefix(form, "net/", **what)
    return renamed


def _functions_alone(form: onnx.ModelProto) -> onnx.ModelProto:
    kinds = ("nodes", "edges", "inputs", "outputs", "initializers", "value_infos")
    return _prefixed(form, **{f"rename_{kind}": False for kind in kinds})


def _of_another_domain(form: onnx.ModelProto) -> onnx.ModelProto:
    bodies = [form.graph, *form.functions]
    for entry in (
        *(node for body in bodies for node in body.node),
        *form.functions,
        *(entry for holder in (form, *form.functions) for entry in holder.opset_import),
    ):
        if entry.domain == "syncbn":
            entry.domain = "mine"
    return form


RENAMED: dict[str, Edit] = {
    "prefix": _prefixed,
    "prefix, functions as they were": lambda form: _prefixed(form, rename_functions=False),
    "functions alone": _functions_alone,
    "domain": _of_another_domain,
    "prefix twice": lambda form: _prefixed(_prefixed(form)),
}


@pytest.mark.parametrize("kind", RENAMED)
def test_renamed_form_is_folded_and_goes_on(kind: str) -> None:
    form = RENAMED[kind](_form())
    name = form.graph.input[0].name
    assert syncbn_convert.inspect(form).nodes[0].reason == "is synchronized already"
    folded = syncbn_convert.fold(form, verify=False)
    assert isinstance(folded, onnx.ModelProto)
    assert not folded.functions
    (got,) = run(folded, {name: X}).values()
    np.testing.assert_array_equal(got, run(convolution(), {"x": X})["y"])
    calibrated = syncbn_convert.calibrate(form, lambda: [{name: X}], verify=False)
    assert isinstance(calibrated, onnx.ModelProto)
    (bindings,) = calibrated.training_info
    names = {tensor.name for tensor in calibrated.graph.initializer}
    outputs = {output.name for output in calibrated.graph.output}
    assert {pair.key for pair in bindings.update_binding} <= names
    assert {pair.value for pair in bindings.update_binding} <= outputs
    assert len(bindings.update_binding) == 2


def test_two_forms_that_were_joined() -> None:
    second = batchnorm_model(make_layer(4), ["n", 4, 8, 8])
    other = syncbn_convert.convert(second, verify=False)
    assert isinstance(other, onnx.ModelProto)
    forms = [_form(), other]
    plain = [convolution(), second]
    for model in plain:
        model.ir_version = 10
    joined, expected = (
        onnx.compose.merge_models(pair[0], pair[1], io_map=[("y", "x")], prefix1="a/", prefix2="b/")
        for pair in (forms, plain)
    )
    folded, report = syncbn_convert.fold_with_report(joined, verify=False)
    assert isinstance(folded, onnx.ModelProto)
    assert [record.node for record in report.records] == ["a/norm", "b/norm"]
    got, wanted = (run(model, {"a/x": X})["b/y"] for model in (folded, expected))
    np.testing.assert_array_equal(got, wanted)


def _trimmed(outputs: int) -> Edit:
    def edit(form: onnx.ModelProto) -> onnx.ModelProto:
        node = _node(form)
        gone = set(node.output[outputs:])
        del node.output[outputs:]
        kept = [output for output in form.graph.output if output.name not in gone]
        del form.graph.output[:]
        form.graph.output.extend(kept)
        return form

    return edit


def _unnamed(form: onnx.ModelProto) -> onnx.ModelProto:
    form = _trimmed(1)(form)
    _node(form).output.extend(["", ""])
    return form


def _without_functions(form: onnx.ModelProto) -> onnx.ModelProto:
    del form.functions[:]
    return form


TRIMMED: dict[str, Edit] = {
    "one output": _trimmed(1),
    "two outputs": _trimmed(2),
    "outputs without names": _unnamed,
    "functions": _without_functions,
}


@pytest.mark.parametrize("kind", TRIMMED)
def test_trimmed_form_is_folded_and_else_refused_with_the_reason(kind: str) -> None:
    form = TRIMMED[kind](_form())
    folded = syncbn_convert.fold(form, verify=False)
    assert isinstance(folded, onnx.ModelProto)
    np.testing.assert_array_equal(run(folded, {"x": X})["y"], run(convolution(), {"x": X})["y"])
    assert syncbn_convert.inspect(form).nodes
    with pytest.raises(ConversionError, match="fold the form and convert the result"):
        syncbn_convert.calibrate(form, lambda: [{"x": X}])
    with pytest.raises(ConversionError, match="the model is a training form; fold it first"):
        syncbn_convert.fuse(form)
    with pytest.raises(ConversionError, match="is a training form already"):
        syncbn_convert.convert(form)


def _foreign(outputs: int) -> onnx.ModelProto:
    model = convolution()
    names = ["p", "q", "r"][:outputs]
    nodes = [oh.make_node("Relu", ["a"], [name]) for name in names]
    opset = [oh.make_opsetid("", 17)]
    model.functions.append(
        oh.make_function("syncbn", "SyncBatchNormalization", ["a"], names, nodes, opset)
    )
    model.opset_import.append(oh.make_opsetid("syncbn", 1))
    model.graph.node.append(
        oh.make_node("SyncBatchNormalization", ["y"], ["z", "z2", "z3"][:outputs], domain="syncbn")
    )
    model.graph.output[0].name = "z"
    return model


def _stranger() -> onnx.ModelProto:
    form = _without_functions(_form())
    del _node(form).metadata_props[:]
    return form


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_foreign(1), "has a function 'syncbn::SyncBatchNormalization' of its own"),
        (_foreign(3), "has a function 'syncbn::SyncBatchNormalization' of its own"),
        (_stranger(), "neither a function nor a note that says what it is"),
    ],
)
@pytest.mark.parametrize("command", [syncbn_convert.fold, syncbn_convert.convert])
def test_what_only_has_the_name_is_refused(
    command: Callable[[onnx.ModelProto], object], model: onnx.ModelProto, words: str
) -> None:
    with pytest.raises(SyncBNError, match=words):
        command(model)
    assert not any(node.convertible for node in syncbn_convert.inspect(model).nodes)
    assert words in syncbn_convert.inspect(model).nodes[0].reason


@pytest.mark.parametrize("command", [syncbn_convert.convert, syncbn_convert.fuse])
def test_call_with_fewer_outputs_than_a_function(
    command: Callable[..., object],
) -> None:
    model = convolution()
    nodes = [oh.make_node("Relu", ["a"], ["p"]), oh.make_node("Neg", ["a"], ["q"])]
    opset = [oh.make_opsetid("", 17)]
    model.functions.append(oh.make_function("my", "F", ["a"], ["p", "q"], nodes, opset))
    model.opset_import.append(oh.make_opsetid("my", 1))
    model.graph.node[2].op_type, model.graph.node[2].domain = "F", "my"
    result = command(model, verify=False)
    assert isinstance(result, onnx.ModelProto)
