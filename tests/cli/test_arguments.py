from __future__ import annotations

from pathlib import Path

import pytest

from syncbn_convert.cli.app import app
from syncbn_convert.cli.usage import complete_arguments
from syncbn_convert.options.rewrites import ConvertOptions, FoldOptions, PipelineOptions
from syncbn_convert.options.verifying import Verifying, VerifyOptions
from syncbn_convert.options.writing import WritingOptions

from .conftest import FakeCommands, Run


@pytest.mark.parametrize(
    ("given", "completed"),
    [
        ([], []),
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
        (["help"], ["--help"]),
        (["help", "fold"], ["fold", "--help"]),
        (["version"], ["--version"]),
        (["conver", "m.onnx"], ["conver", "m.onnx"]),
        (["model"], ["convert", "model"]),
    ],
)
def test_default_command_and_bare_json(given: list[str], completed: list[str]) -> None:
    assert complete_arguments(given, set(app)) == completed


def test_convert_without_flags(commands: FakeCommands, run: Run) -> None:
    assert run("m.onnx").exit_code == 0
    [(name, positional, named)] = commands.calls
    assert name == "convert"
    assert positional == (Path("m.onnx"), ConvertOptions(), WritingOptions(), Verifying())
    assert callable(named.pop("show_stage"))
    assert named == {"page": None}


def test_convert_with_every_flag(commands: FakeCommands, run: Run, tmp_path: Path) -> None:
    finished = run(
        *["m.onnx", "-o", "out.onnx", "--include", "^a", "--include", "b$", "--exclude", "c"],
        *["--freeze", "d", "--opset", "20", "--input-shape", "x:0:2,3", "--input-shape", "y:4x5"],
        *["--save-as-external-data", "--no-verify", "--rtol", "1e-3", "--atol", "0", "--seed", "7"],
        *["--dry-run", "--force", f"--json={tmp_path / 'r.json'}", "-vq", "--time-passes"],
        *["--print-between-passes", "--report", "page.html"],
    )
    assert finished.exit_code == 0
    [(_, positional, named)] = commands.calls
    assert positional == (
        Path("m.onnx"),
        ConvertOptions(
            include=("^a", "b$"),
            exclude=("c",),
            freeze=("d",),
            seed=7,
            opset=20,
            pipeline=PipelineOptions(print_between_passes=True),
        ),
        WritingOptions(
            output=Path("out.onnx"), force=True, dry_run=True, save_as_external_data=True
        ),
        Verifying(
            verify=False,
            rtol=1e-3,
            atol=0.0,
            seed=7,
            input_shapes={"x:0": (2, 3), "y": (4, 5)},
        ),
    )
    del named["show_stage"]
    assert named == {"page": Path("page.html")}


def test_a_flag_given_again_counts_the_last_time(commands: FakeCommands, run: Run) -> None:
    assert run("m.onnx", "--seed", "1", "--opset", "18", "--opset", "19").exit_code == 0
    [(_, (_, options, *_), _)] = commands.calls
    assert options == ConvertOptions(seed=1, opset=19)


def test_fold(commands: FakeCommands, run: Run) -> None:
    assert run("fold", "m.onnx", "--output", "o.onnx", "--opset", "18", "--force").exit_code == 0
    [(name, positional, _)] = commands.calls
    assert name == "fold"
    writing = WritingOptions(output=Path("o.onnx"), force=True)
    assert positional == (Path("m.onnx"), FoldOptions(opset=18), writing, Verifying())


def test_inspect(commands: FakeCommands, run: Run) -> None:
    assert run("inspect", "m.onnx").exit_code == 0
    assert commands.calls == [("inspect", (Path("m.onnx"),), {})]


def test_verify(commands: FakeCommands, run: Run) -> None:
    flags = ["--seed", "3", "--data", "d.npz", "--input-shape", "x:1"]
    assert run("verify", "a.onnx", "b.onnx", *flags).exit_code == 0
    options = VerifyOptions(seed=3, data=Path("d.npz"), input_shapes={"x": (1,)})
    files = Path("a.onnx"), Path("b.onnx")
    assert commands.calls == [("verify", (*files, options), {"page": None})]


def test_a_model_named_as_a_command(commands: FakeCommands, run: Run) -> None:
    assert run("./inspect").exit_code == 0
    assert commands.calls[0][:2] == (
        "convert",
        (Path("inspect"), ConvertOptions(), WritingOptions(), Verifying()),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert"], "MODEL is missing; see syncbn-convert convert --help"),
        (["verify", "a.onnx"], "CANDIDATE is missing"),
        (["m.onnx", "second"], "unexpected argument 'second'"),
        (["m.onnx", "--nonsense"], "unknown option: --nonsense"),
        (["m.onnx", "--out", "x"], "unknown option: --out. Did you mean --output?"),
        (["m.onnx", "--dry"], "unknown option: --dry. Did you mean --dry-run?"),
        (["m.onnx", "--forc"], "unknown option: --forc. Did you mean --force?"),
        (["m.onnx", "--verb"], "unknown option: --verb. Did you mean --verbose?"),
        (["inspect", "m.onnx", "--js"], "unknown option: --js. Did you mean --json?"),
        (["--vers"], "unknown option: --vers"),
        (["inspect", "m.onnx", "--force"], "unknown option: --force"),
        (["fold", "m.onnx", "--include", "a"], "unknown option: --include"),
        (["m.onnx", "-o"], "-o requires an argument"),
        (["m.onnx", "-o", "--force"], "-o requires an argument"),
        (["m.onnx", "--output=--force"], "'--force' looks like a flag"),
        (["m.onnx", "--opset", "x"], "--opset"),
        (["conver", "m.onnx"], 'Did you mean "convert"?'),
        (["m.onnx", "--opset", "0"], "opset 0: give a version from 1 up"),
        (["m.onnx", "--seed", "-1"], "seed -1"),
        (["m.onnx", "--rtol", "much"], "--rtol"),
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
        (["m.onnx", "--json=m.onnx"], "'m.onnx' is no JSON file"),
        (["m.onnx", "--force=maybe"], 'invalid value for --force: unable to convert "maybe"'),
    ],
)
def test_wrong_usage_is_one_line_and_does_nothing(
    arguments: list[str], message: str, commands: FakeCommands, run: Run
) -> None:
    finished = run(*arguments)
    assert finished.exit_code == 2
    assert finished.stdout == ""
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1
    assert message in finished.stderr
    assert commands.calls == []


@pytest.mark.parametrize("command", [name for name in app if not name.startswith("-")])
def test_help_of_each_command(command: str, run: Run) -> None:
    finished = run(command, "--help")
    assert finished.exit_code == 0
    assert finished.stdout.startswith(f"Usage: syncbn-convert {command} ")
    assert f"\nExample: syncbn-convert {command} " in finished.stdout
    assert finished.stderr == ""
    assert max(map(len, finished.stdout.splitlines())) <= 80


def test_the_program_alone_prints_its_help(run: Run) -> None:
    assert run() == run("--help") == run("help")
    assert run("help", "fuse") == run("fuse", "--help")
    assert run("version") == run("--version")
