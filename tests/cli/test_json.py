from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from syncbn_convert.reports import InspectReport

from .conftest import FakeCommands, Run, node_info, rewrite_report, verify_report


def _refuse_constant(name: str) -> Any:
    raise AssertionError(f"{name} is not JSON")


def _parsed(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant)


@pytest.mark.parametrize("command", ["convert", "fold"])
def test_convert_and_fold(command: str, commands: FakeCommands, run: Run) -> None:
    commands.rewrite_report = rewrite_report(command)
    finished = run(command, "--json", "m.onnx")
    content = _parsed(finished.stdout)
    records = content.pop("records")
    assert content == {
        "command": command,
        "input": "m.onnx",
        "output": "out.onnx",
        "found": 2,
        "converted": 1,
        "skipped": [{"node": "bn2", "module": "", "reason": "inside a Loop body"}],
        "all_reduces": 1,
        "verified": True,
        "max_relative_error": 1.2e-7,
        "tolerance": 3.4e-6,
        "seconds": 0.5,
        "notes": ["opset raised from 9 to 18"],
    }
    assert records[0] == {
        "node": "bn1",
        "action": "converted",
        "reason": "",
        "location": "",
        "detail": {"channels": 64, "dtype": "float32"},
        "module": "",
    }
    assert len(records) == 2


def test_nothing_written_and_not_verified_are_null(commands: FakeCommands, run: Run) -> None:
    commands.rewrite_report = rewrite_report(
        verified=False, max_relative_error=None, tolerance=None
    )
    commands.written = None
    content = _parsed(run("m.onnx", "--dry-run", "--json").stdout)
    assert content["output"] is None
    assert content["max_relative_error"] is None
    assert content["verified"] is False


def test_inspect(commands: FakeCommands, run: Run) -> None:
    commands.inspect_report = InspectReport(
        opset=18, ir_version=10, nodes=[node_info(channels=None, epsilon=float("inf"))]
    )
    content = _parsed(run("inspect", "m.onnx", "--json").stdout)
    assert content == {
        "opset": 18,
        "ir_version": 10,
        "nodes": [
            {
                "name": "bn1",
                "op_type": "BatchNormalization",
                "domain": "",
                "axis": 1,
                "channels": None,
                "epsilon": "Infinity",
                "momentum": 0.9,
                "training_mode": False,
                "dtype": "float32",
                "parameters": ["scale", "bias", "mean", "variance"],
                "location": "",
                "convertible": True,
                "reason": "",
                "sick": "",
                "module": "",
            }
        ],
        "notes": [],
    }


def test_verify(commands: FakeCommands, run: Run) -> None:
    commands.verify_report = verify_report(
        equal=False, max_relative_error=float("nan"), first_difference="conv1"
    )
    finished = run("verify", "a.onnx", "b.onnx", "--json", "--quiet")
    assert finished.exit_code == 1
    content = _parsed(finished.stdout)
    assert set(content) == {
        *("equal", "max_relative_error", "tolerance", "outputs", "first_difference"),
        *("runs", "notes", "unproven"),
    }
    assert content["equal"] is False
    assert content["max_relative_error"] == "NaN"
    assert content["first_difference"] == "conv1"
    assert [output["name"] for output in content["outputs"]] == ["y"]


@pytest.mark.usefixtures("commands")
@pytest.mark.parametrize("arguments", [["m.onnx"], ["inspect", "m.onnx"], ["verify", "a", "b"]])
def test_a_file_leaves_the_table_on_stdout(arguments: list[str], run: Run, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    table = run(*arguments).stdout
    assert run(*arguments, f"--json={target}").stdout == table
    assert _parsed(target.read_text(encoding="utf-8")) == _parsed(run(*arguments, "--json").stdout)


@pytest.mark.usefixtures("commands")
def test_an_unwritable_file_is_an_error(run: Run, tmp_path: Path) -> None:
    finished = run("m.onnx", f"--json={tmp_path / 'absent' / 'report.json'}")
    assert finished.exit_code == 2
    assert finished.stdout == ""
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1
    assert (
        "cannot be written: No such file or directory; choose a folder that exists"
        in finished.stderr
    )
