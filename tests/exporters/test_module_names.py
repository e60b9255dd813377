"""Nodes are shown and chosen by the modules of PyTorch that they come from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import syncbn_convert
from syncbn_convert import ConversionError, ConvertOptions, LayerRule, UnfuseOptions
from syncbn_convert.cli.main import main
from syncbn_convert.graph import module_names
from syncbn_convert.options.layers import SyncBatchNormalizationOptions
from tests.exporters.network import MODULES, images
from tests.fusion import cases

WAYS = ["unoptimized", "script_preserve"]


@pytest.mark.parametrize("way", [*WAYS, "script_training"])
def test_inspect_shows_modules_and_json_has_both(
    way: str, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(exported / f"{way}.onnx")
    assert main(["inspect", source]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown[1:4]] == MODULES
    assert main(["inspect", source, "--json"]) == 0
    nodes = json.loads(capsys.readouterr().out)["nodes"]
    names = [node.name for node in onnx.load(source).graph.node if "Batch" in node.op_type]
    assert [(node["name"], node["module"]) for node in nodes] == list(
        zip(names, MODULES, strict=True)
    )


def _converted(way: str, exported: Path, options: ConvertOptions) -> list[str]:
    model = onnx.load(exported / f"{way}.onnx")
    _, report = syncbn_convert.convert_with_report(model, options, verify=False)
    return [record.module for record in report.records if record.action == "converted"]


@pytest.mark.parametrize("way", WAYS)
def test_nodes_are_chosen_by_module_or_name(way: str, exported: Path) -> None:
    name = next(
        n.name for n in onnx.load(exported / f"{way}.onnx").graph.node if "Batch" in n.op_type
    )
    for options, wanted in [
        (ConvertOptions(include=(r"^layer1\.0\.bn1$",)), MODULES[1:2]),
        (ConvertOptions(exclude=("bn[12]$",)), MODULES[:1]),
        (ConvertOptions(freeze=("^stem",)), MODULES[1:]),
        (ConvertOptions(include=(f"^{name}$",)), MODULES[:1]),
    ]:
        assert _converted(way, exported, options) == wanted


@pytest.mark.parametrize("way", WAYS)
def test_options_of_a_layer_are_given_by_module(way: str, exported: Path) -> None:
    rule = LayerRule(pattern=r"layer1\.0\.bn2", options=SyncBatchNormalizationOptions(momentum=0.5))
    form = syncbn_convert.convert(
        onnx.load(exported / f"{way}.onnx"), ConvertOptions(layers=(rule,)), verify=False
    )
    assert isinstance(form, onnx.ModelProto)
    momenta = [
        onnx.helper.get_node_attr_value(node, "momentum")
        for node in form.graph.node
        if node.op_type == "SyncBatchNormalization"
    ]
    assert momenta == pytest.approx([0.9, 0.9, 0.5])


def test_a_pattern_that_matches_nothing_names_both(exported: Path) -> None:
    with pytest.raises(ConversionError, match=r"node__native_batch_norm.*' or 'stem\.1'"):
        _converted("unoptimized", exported, ConvertOptions(include=("encoder",)))


@pytest.mark.parametrize(
    ("way", "pattern", "module"),
    [
        ("optimized", r"^layer1\.0\.bn2$", "layer1.0.bn2"),
        ("script_eval", "conv2", "layer1.0.conv2"),
    ],
)
def test_unfuse_chooses_by_module(way: str, pattern: str, module: str, exported: Path) -> None:
    model = syncbn_convert.unfuse(
        onnx.load(exported / f"{way}.onnx"),
        lambda: iter([{"image": images()}]),
        UnfuseOptions(include=(pattern,)),
    )
    assert isinstance(model, onnx.ModelProto)
    report = syncbn_convert.inspect(model)
    assert len(report.nodes) == 1
    assert report.nodes[0].module == module


@pytest.mark.parametrize("way", WAYS)
def test_calibrate_shows_modules(
    way: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "data.npz", image=images())
    arguments = ["--data", tmp_path / "data.npz", "-o", tmp_path / "o.onnx", "--no-verify"]
    assert main(["calibrate", str(exported / f"{way}.onnx"), *map(str, arguments)]) == 0
    shown = capsys.readouterr().out.splitlines()[1:4]
    assert sorted(line.split()[0] for line in shown) == sorted(MODULES)


NAMED = {
    "scopes": ({"pkg.torch.onnx.name_scopes": "['', 'a', 'a.0', 'conv']"}, "n", "x", "a.0"),
    "scopes that are no list": ({"pkg.torch.onnx.name_scopes": "__import__('os')"}, "n", "x", ""),
    "scopes that are no text": ({"pkg.torch.onnx.name_scopes": "[1, 2]"}, "n", "x", ""),
    "scopes that are cut off": ({"pkg.torch.onnx.name_scopes": "['a', 'b"}, "n", "x", ""),
    "a parameter": ({}, "n", "encoder.2.bn.weight", "encoder.2.bn"),
    "a value that is no parameter": ({}, "n", "encoder.2.scale", ""),
    "a path": ({}, "/a/a.0/a.0.1/bn/BatchNormalization", "x", "a.0.1.bn"),
    "a path of modules that begin alike": ({}, "/a/a0/bn/BatchNormalization", "x", "a.a0.bn"),
    "a name": ({}, "model/bn/FusedBatchNormV3", "x", ""),
}


@pytest.mark.parametrize("case", NAMED)
def test_where_names_come_from(case: str) -> None:
    metadata, name, operand, module = NAMED[case]
    values = [ir.Value(name="x"), ir.Value(name=operand)]
    node = ir.Node("", "BatchNormalization", values, name=name, metadata_props=metadata)
    assert module_names.module_of(node) == module


ABSENT = {
    "tf2onnx": "tf2onnx fuses it .* give syncbn-convert the Keras file or SavedModel itself",
    "pytorch": r"torch\.onnx\.export\(dynamo=False\) fuses it .*TrainingMode\.PRESERVE",
    "paddle2onnx": "if there was any, 'paddle2onnx', which wrote it, has fused it",
    "": "if there was any, what wrote it has fused it",
}


@pytest.mark.parametrize("producer", ABSENT)
def test_what_is_said_of_other_producers(producer: str) -> None:
    model = cases.build(cases.X4, "y = Conv(x, w)", cases.W)
    model.producer_name = producer
    with pytest.raises(ConversionError, match=ABSENT[producer]) as raised:
        syncbn_convert.convert(model)
    assert "unfuse MODEL --data DATA" in str(raised.value)
    assert syncbn_convert.inspect(model).notes == [str(raised.value)]


def test_a_model_without_weights_is_not_sent_to_unfuse() -> None:
    model = cases.build(cases.X4, "y = Relu(x)", {})
    with pytest.raises(ConversionError, match="nor a layer with weights"):
        syncbn_convert.convert(model)


def test_other_normalization_is_named() -> None:
    model = cases.build(
        cases.X4, "y = InstanceNormalization(x, s, b)", {k: cases.norm(4)[k] for k in "sb"}
    )
    with pytest.raises(
        ConversionError, match=r"but InstanceNormalization \(1\), which looks at one"
    ):
        syncbn_convert.convert(model)
