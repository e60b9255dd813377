from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import syncbn_convert
from syncbn_convert import (
    ConversionError,
    ConvertOptions,
    FoldOptions,
    FuseOptions,
    UsageError,
    VerificationError,
    VerifyOptions,
)
from syncbn_convert.verification import verdicts
from tests.harness import spelling
from tests.models import DIGITS, batchnorm_model, make_layer


def test_the_type_that_came_in_comes_back_and_the_argument_is_unchanged() -> None:
    proto = onnx.load(DIGITS)
    before = proto.SerializeToString(deterministic=True)
    form = syncbn_convert.convert(proto)
    assert isinstance(form, onnx.ModelProto)
    assert proto.SerializeToString(deterministic=True) == before

    model = ir.load(DIGITS)
    text = ir.to_proto(model).SerializeToString(deterministic=True)
    form_ir = syncbn_convert.convert(model)
    assert isinstance(form_ir, ir.Model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == text

    assert isinstance(syncbn_convert.convert(DIGITS), ir.Model)
    assert isinstance(syncbn_convert.fold(form), onnx.ModelProto)
    assert isinstance(syncbn_convert.fold(form_ir), ir.Model)


def test_all_ways_in_give_the_same_form(tmp_path: Path) -> None:
    path, _ = syncbn_convert.convert_file(DIGITS, tmp_path / "form.onnx")
    assert path is not None
    form = syncbn_convert.convert(onnx.load(DIGITS))
    assert isinstance(form, onnx.ModelProto)
    assert form.SerializeToString(deterministic=True) == path.read_bytes()


def test_nothing_to_convert() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[n] x) => (float[n] y) {y = Relu(x)}'
    )
    with pytest.raises(ConversionError, match="holds no BatchNormalization"):
        syncbn_convert.convert(model)


@pytest.mark.parametrize(
    ("rewrite", "options", "message"),
    [
        (syncbn_convert.fold_with_report, FoldOptions, "nothing to fold: "),
        (syncbn_convert.fuse_with_report, FuseOptions, "nothing to fuse"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kept", [False, True])
def test_nothing_to_do_leaves_the_model_as_it_is(
    rewrite: Any, options: Any, message: str, kept: bool
) -> None:
    body = "t = Relu(x) y = BatchNormalization(t, p, p, p, p)" if kept else "y = Relu(x)"
    model = onnx.parser.parse_model(
        '<ir_version: 3, opset_import: ["": 13]> g (float[n, 2] x, float[2] p) => (float[n, 2] y)'
        f"<float[2] p = {{1.0, 2.0}}> {{[only] {body}}}"
    )
    result, report = rewrite(model)
    assert result == ir.to_proto(ir.from_proto(model))
    assert (report.converted, report.verified) == (0, True)
    assert any(re.match(message, note) for note in report.notes), report.notes
    with pytest.raises(ConversionError, match=message):
        rewrite(model, options(fail_if_unchanged=True))


def test_nothing_convertible_names_the_reason() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[n, 2] x, float[2] p) => (float[n, 2] y)'
        "{[only] y = BatchNormalization(x, p, p, p, p)}"
    )
    with pytest.raises(ConversionError, match="'only': scale 'p' is fed by the caller"):
        syncbn_convert.convert(model)


@pytest.mark.parametrize("flag", ["include", "exclude", "freeze"])
def test_a_pattern_that_matches_nothing(flag: str) -> None:
    options = ConvertOptions(**{flag: ("nowhere",)})  # type: ignore[arg-type]
    with pytest.raises(ConversionError, match=f"--{flag} 'nowhere' matches no BatchNormalization"):
        syncbn_convert.convert(DIGITS, options)


def test_a_pattern_that_is_none() -> None:
    with pytest.raises(UsageError, match="is not a regular expression"):
        ConvertOptions(include=("(",))


def test_verification_failure_writes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    with pytest.raises(VerificationError):
        syncbn_convert.convert_file(
            DIGITS, output, verify_options=VerifyOptions(rtol=0.0, atol=0.0)
        )
    assert list(tmp_path.iterdir()) == []


def test_verification_sees_a_wrong_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that forgets epsilon inside the root must not pass."""
    from syncbn_convert.form import training_form

    text = training_form._SYNC_BATCHNORM_TEXT
    assert "<epsilon: float = @epsilon>" in text
    monkeypatch.setattr(
        training_form,
        "_SYNC_BATCHNORM_TEXT",
        text.replace("<epsilon: float = @epsilon>", "<epsilon: float = 1e-5>"),
    )
    with pytest.raises(VerificationError, match="node 'stem_bn' differs from ONNX's training-mode"):
        syncbn_convert.convert_file(DIGITS, tmp_path / "out.onnx")


def test_verification_sees_wrong_parameters(tmp_path: Path) -> None:
    form = onnx.load(DIGITS)
    for tensor in form.graph.initializer:
        if tensor.name == "down_bn/beta":
            value = onnx.numpy_helper.to_array(tensor) + np.float32(1e-3)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    tampered = tmp_path / "tampered.onnx"
    onnx.save(form, tampered)
    converted, _ = syncbn_convert.convert_file(tampered, tmp_path / "form.onnx", verify=False)
    assert converted is not None
    with pytest.raises(VerificationError, match="node 'down_bn'"):
        verdicts.verify_converted(DIGITS, converted, VerifyOptions())


def test_inspect_lists_nodes_with_reasons() -> None:
    report = syncbn_convert.inspect(spelling("refused_parameters"))
    assert (report.opset, report.ir_version) == (17, 8)
    assert [(n.name, n.convertible) for n in report.nodes] == [
        ("mean_is_fed", False),
        ("mean_is_overridable", False),
        ("scale_is_computed", False),
        ("convertible", True),
    ]
    assert report.nodes[3].parameters == ["s", "b", "m", "v"]
    assert (report.nodes[3].channels, report.nodes[3].dtype) == (2, "float32")


def test_inspect_of_a_training_form() -> None:
    form = syncbn_convert.convert(DIGITS, verify=False)
    report = syncbn_convert.inspect(form)
    assert [n.op_type for n in report.nodes] == ["SyncBatchNormalization"] * 5
    assert {n.domain for n in report.nodes} == {"syncbn"}
    assert all(n.training_mode and not n.convertible for n in report.nodes)
    assert report.nodes[0].epsilon == pytest.approx(1e-3)


def test_inspect_says_what_the_file_says() -> None:
    report = syncbn_convert.inspect(spelling("opset9_five_outputs"))
    assert (report.opset, report.ir_version) == (9, 4)
    assert report.nodes[0].training_mode
    body = syncbn_convert.inspect(spelling("in_if_body"))
    assert [n.location for n in body.nodes] == ["", "If 'choose' then_branch"]


@pytest.mark.parametrize("name", ["opset1_test", "opset6_training"])
def test_opsets_that_no_runtime_runs_convert_with_a_note(name: str) -> None:
    _, report = syncbn_convert.convert_with_report(spelling(name))
    assert report.converted == 1
    assert any("the rise to it was not" in note for note in report.notes)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float64", "mixed_types"])
def test_every_element_type_is_verified(name: str) -> None:
    _, report = syncbn_convert.convert_with_report(spelling(name))
    assert (report.converted, report.verified) == (1, True)


def test_fold_of_an_old_training_export_rises_and_says_so() -> None:
    folded, report = syncbn_convert.fold_with_report(spelling("opset6_training"))
    assert isinstance(folded, onnx.ModelProto)
    assert folded.opset_import[0].version == 15
    assert "opset raised from 6 to 15" in report.notes


def test_external_data(tmp_path: Path) -> None:
    layer = make_layer(512)
    model = batchnorm_model(layer, ["n", 512, 3])
    source = tmp_path / "in" / "model.onnx"
    source.parent.mkdir()
    onnx.save(model, source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    form, _ = syncbn_convert.convert_file(source, tmp_path / "form.onnx")
    assert form is not None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["form.onnx", "form.onnx.data", "in"]
    folded, _ = syncbn_convert.fold_file(form)
    assert folded == tmp_path / "form.deploy.onnx"
    loaded = onnx.load(folded)
    values = {t.name: onnx.numpy_helper.to_array(t) for t in loaded.graph.initializer}
    assert np.array_equal(values["v"], layer.var)


def test_options_of_another_function() -> None:
    options: Any = FoldOptions()
    with pytest.raises(UsageError, match="options must be ConvertOptions, not FoldOptions"):
        syncbn_convert.convert(DIGITS, options)
    nothing: Any = {}
    with pytest.raises(UsageError, match="options must be FuseOptions, not dict"):
        syncbn_convert.fuse(DIGITS, nothing)


@pytest.mark.parametrize("call", [syncbn_convert.convert, syncbn_convert.inspect])
def test_what_is_no_model(call: Callable[[Any], object]) -> None:
    with pytest.raises(UsageError, match=r"a model is a path, .* not NoneType"):
        call(None)
