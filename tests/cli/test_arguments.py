from __future__ import annotations

from pathlib import Path

import pytest

from syncbn_convert.cli.main import complete_arguments
from syncbn_convert.options.rewrites import ConvertOptions, FoldOptions, PipelineOptions
from syncbn_convert.verification import VerifyOptions

from .conftest import FakeApi, Run


@pytest.mark.parametrize(
    ("given", "completed"),
    [
        ([], ["convert"]),
        (["m.onnx"], ["convert", "m.onnx"]),
        (["-o", "out.onnx", "m.onnx"], ["convert", "-o", "out.onnx", "m.onnx"]),
        (["convert", "m.onnx"], ["convert", "m.onnx"]),
        (["./convert"], ["convert", "./convert"]),
        (["verify", "a", "b"], ["verify", "a", "b"]),
        (["--help"], ["--help"]),
        (["--version"], ["--version"]),
        (["--json", "m.onnx"], ["convert", "--json=-", "m.onnx"]),
        (["inspect", "m.onnx", "--json"], ["inspect", "m.onnx", "--json=-"]),
        (["fold", "--json=a.json", "m.onnx"], ["fold", "--json=a.json", "m.onnx"]),
        (["fold", "--", "--json"], ["fold", "--", "--json"]),
    ],
)
def test_default_command_and_bare_json(given: list[str], completed: list[str]) -> None:
    assert complete_arguments(given) == completed


def test_convert_without_flags(api: FakeApi, run: Run) -> None:
    assert run("m.onnx").exit_code == 0
    [(name, positional, named)] = api.calls
    assert name == "convert_file"
    assert positional == (Path("m.onnx"), None, ConvertOptions())
    assert callable(named.pop("progress"))
    assert named == {
        "verify": True,
        "verify_options": VerifyOptions(),
        "force": False,
        "dry_run": False,
        "save_as_external_data": False,
    }


def test_convert_with_every_flag(api: FakeApi, run: Run, tmp_path: Path) -> None:
    finished = run(
        *["m.onnx", "-o", "out.onnx", "--include", "^a", "--include", "b$", "--exclude", "c"],
        *["--freeze", "d", "--opset", "20", "--input-shape", "x:0:2,3", "--input-shape", "y:4x5"],
        *["--save-as-external-data", "--no-verify", "--rtol", "1e-3", "--atol", "0", "--seed", "7"],
        *["--dry-run", "--force", f"--json={tmp_path / 'r.json'}", "-vq", "--time-passes"],
        "--print-between-passes",
    )
    assert finished.exit_code == 0
    [(_, positional, named)] = api.calls
    assert positional == (
        Path("m.onnx"),
        Path("out.onnx"),
        ConvertOptions(
            include=("^a", "b$"),
            exclude=("c",),
            freeze=("d",),
            seed=7,
            opset=20,
            pipeline=PipelineOptions(print_between_passes=True),
        ),
    )
    del named["progress"]
    assert named == {
        "verify": False,
        "verify_options": VerifyOptions(
            rtol=1e-3, atol=0.0, seed=7, input_shapes={"x:0": (2, 3), "y": (4, 5)}
        ),
        "force": True,
        "dry_run": True,
        "save_as_external_data": True,
    }


def test_fold(api: FakeApi, run: Run) -> None:
    assert run("fold", "m.onnx", "--output", "o.onnx", "--opset", "18", "--force").exit_code == 0
    [(name, positional, named)] = api.calls
    assert name == "fold_file"
    assert positional == (Path("m.onnx"), Path("o.onnx"), FoldOptions(opset=18))
    assert named["force"]
    assert not named["dry_run"]


def test_inspect(api: FakeApi, run: Run) -> None:
    assert run("inspect", "m.onnx").exit_code == 0
    assert api.calls == [("inspect", (Path("m.onnx"),), {})]


def test_verify(api: FakeApi, run: Run) -> None:
    flags = ["--seed", "3", "--data", "d.npz", "--input-shape", "x:1"]
    assert run("verify", "a.onnx", "b.onnx", *flags).exit_code == 0
    options = VerifyOptions(seed=3, data=Path("d.npz"), input_shapes={"x": (1,)})
    assert api.calls == [("verify", (Path("a.onnx"), Path("b.onnx"), options), {})]


def test_a_model_named_as_a_command(api: FakeApi, run: Run) -> None:
    assert run("./inspect").exit_code == 0
    assert api.calls[0][:2] == ("convert_file", (Path("inspect"), None, ConvertOptions()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'MODEL'"),
        (["verify", "a.onnx"], "Missing argument 'CANDIDATE'"),
        (["m.onnx", "second"], "unexpected extra argument"),
        (["m.onnx", "--nonsense"], "No such option: --nonsense"),
        (["m.onnx", "--out", "x"], "No such option: --out"),
        (["m.onnx", "--dry"], "No such option: --dry"),
        (["m.onnx", "--forc"], "No such option: --forc"),
        (["m.onnx", "--verb"], "No such option: --verb"),
        (["inspect", "m.onnx", "--js"], "No such option: --js"),
        (["--vers"], "No such option: --vers"),
        (["inspect", "m.onnx", "--force"], "No such option: --force"),
        (["fold", "m.onnx", "--include", "a"], "No such option: --include"),
        (["m.onnx", "-o"], "'-o' requires an argument"),
        (["m.onnx", "-o", "--force"], "'--force' looks like a flag"),
        (["m.onnx", "--opset", "x"], "'--opset'"),
        (["m.onnx", "--opset", "0"], "'--opset'"),
        (["m.onnx", "--seed", "-1"], "'--seed'"),
        (["m.onnx", "--rtol", "much"], "'--rtol'"),
        (["m.onnx", "--rtol", "nan"], "rtol is nan"),
        (["m.onnx", "--atol", "-1"], "atol is -1.0"),
        (["m.onnx", "--include", "("], "'(' is not a regular expression"),
        (["m.onnx", "--input-shape", "2,3"], "'2,3' is not NAME:DIMS"),
        (["m.onnx", "--input-shape", "x:"], "'x:' is not NAME:DIMS"),
        (["m.onnx", "--input-shape", ":1"], "':1' is not NAME:DIMS"),
        (["m.onnx", "--input-shape", "x:0,1"], "'x:0,1' is not NAME:DIMS"),
        (["m.onnx", "--input-shape", "x:1,N"], "'x:1,N' is not NAME:DIMS"),
        (["m.onnx", "--input-shape", "x:1", "--input-shape", "x:2"], "'x' is given twice"),
        (["m.onnx", "--json="], "'' is no JSON file"),
        (["--json=m.onnx"], "'m.onnx' is no JSON file"),
        (["m.onnx", "--force=yes"], "does not take a value"),
    ],
)
def test_wrong_usage_is_one_line_and_does_nothing(
    arguments: list[str], message: str, api: FakeApi, run: Run
) -> None:
    finished = run(*arguments)
    assert finished.exit_code == 2
    assert finished.stdout == ""
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1
    assert message in finished.stderr
    assert api.calls == []


@pytest.mark.parametrize("command", ["convert", "fold", "inspect", "verify"])
def test_help_of_each_command(command: str, run: Run) -> None:
    finished = run(command, "--help")
    assert finished.exit_code == 0
    assert finished.stdout.startswith(f"Usage: syncbn-convert {command} ")
    assert finished.stderr == ""
    assert max(map(len, finished.stdout.splitlines())) <= 80
