from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from .conftest import Run

BATCH_NORMALIZATIONS = ["stem_bn", "depthwise_bn", "residual_bn", "down_bn", "hidden_bn"]


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _op_types(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_convert_then_fold_gives_the_model_back(digits: Path, run: Run) -> None:
    converted = run(str(digits))
    assert converted.exit_code == 0, converted.stderr
    assert converted.stderr == ""
    assert "found 5, converted 5, left alone 0, AllReduce per step 5\n" in converted.stdout
    assert "\nverified: largest relative error " in converted.stdout
    for name in BATCH_NORMALIZATIONS:
        assert any(line.startswith(f"{name} ") for line in converted.stdout.splitlines())
    synchronized = digits.with_name("digits.sync.onnx")
    assert "BatchNormalization" not in _op_types(synchronized)
    assert _op_types(synchronized).count("SyncBatchNormalization") == 5

    folded = run("fold", str(synchronized), "-o", str(digits.with_name("back.onnx")))
    assert folded.exit_code == 0, folded.stderr
    assert "found 5, folded 5, left alone 0, AllReduce per step 0\n" in folded.stdout
    assert _files(digits.parent) == ["back.onnx", "digits.onnx", "digits.sync.onnx"]
    assert _op_types(digits.with_name("back.onnx")).count("BatchNormalization") == 5

    compared = run("verify", str(digits), str(digits.with_name("back.onnx")), "--json")
    assert compared.exit_code == 0, compared.stderr
    assert json.loads(compared.stdout)["equal"] is True


def test_json_of_convert(digits: Path, run: Run) -> None:
    finished = run(str(digits), "--json", "--exclude", "^stem", "--freeze", "^down")
    assert finished.exit_code == 0, finished.stderr
    content = json.loads(finished.stdout)
    assert content["command"] == "convert"
    assert content["output"] == str(digits.with_name("digits.sync.onnx"))
    assert (content["found"], content["converted"], content["all_reduces"]) == (5, 3, 3)
    assert [entry["node"] for entry in content["skipped"]] == ["stem_bn", "down_bn"]
    assert all(entry["reason"] for entry in content["skipped"])
    assert content["verified"] is True
    assert 0 <= content["max_relative_error"] <= content["tolerance"]


def test_dry_run_lists_every_node_and_writes_nothing(digits: Path, run: Run) -> None:
    finished = run(str(digits), "--dry-run")
    assert finished.exit_code == 0
    for name in BATCH_NORMALIZATIONS:
        assert any(line.startswith(f"{name} ") for line in finished.stdout.splitlines())
    assert _files(digits.parent) == ["digits.onnx"]


def test_inspect(digits: Path, run: Run) -> None:
    nodes = json.loads(run("inspect", str(digits), "--json").stdout)["nodes"]
    assert [node["name"] for node in nodes] == BATCH_NORMALIZATIONS
    assert [node["channels"] for node in nodes] == [32, 32, 32, 64, 64]
    assert all(node["convertible"] for node in nodes)


def test_an_existing_output_needs_force(digits: Path, run: Run) -> None:
    before = digits.read_bytes()
    refused = run(str(digits), "-o", str(digits), "--no-verify")
    assert refused.exit_code == 2
    assert refused.stdout == ""
    assert "--force" in refused.stderr
    assert digits.read_bytes() == before
    assert run(str(digits), "-o", str(digits), "--no-verify", "--force", "-q").exit_code == 0
    assert "SyncBatchNormalization" in _op_types(digits)


def test_verify_tells_models_apart(digits: Path, run: Run) -> None:
    other = digits.with_name("other.onnx")
    model = onnx.load(digits)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "stem_conv/kernel")
    weight.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 2, weight.name)
    )
    onnx.save(model, other)
    finished = run("verify", str(digits), str(other))
    assert finished.exit_code == 1
    assert "\nnot equal: largest relative error " in finished.stdout
    assert "\nfirst difference: " in finished.stdout
    assert finished.stderr == ""


@pytest.mark.parametrize("command", ["convert", "fold", "inspect"])
def test_a_malformed_model_is_one_line(command: str, tmp_path: Path, run: Run) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"this is no protobuf")
    finished = run(command, str(broken))
    assert finished.exit_code == 2
    assert finished.stdout == ""
    assert finished.stderr.count("\n") == 1
    assert "broken.onnx" in finished.stderr
    assert _files(tmp_path) == ["broken.onnx"]
