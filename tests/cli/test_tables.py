from __future__ import annotations

import sys

import pytest

from syncbn_convert.reports import InspectReport, OutputDifference, Record

from .conftest import FakeCommands, Run, Terminal, node_info, rewrite_report, verify_report

LONG_NAME = "backbone/" + "/".join(f"stage{i}_block{i}" for i in range(12)) + "/bn"
LONG_REASON = "is called by the function 'ai.example::Block', whose " + "statistics differ " * 6


def _cells(stdout: str) -> list[list[str]]:
    return [line.split() for line in stdout.splitlines() if line.strip()]


def _assert_fits(stdout: str) -> None:
    assert max(map(len, stdout.splitlines())) <= 80


def test_convert(commands: FakeCommands, run: Run) -> None:
    finished = run("m.onnx")
    assert finished.stderr == ""
    cells = _cells(finished.stdout)
    assert ["node", "channels", "dtype", "action"] in cells
    assert ["bn1", "64", "float32", "converted"] in cells
    assert "left alone (skipped): inside a Loop body\n  loop/body: bn2\n\n" in finished.stdout
    assert finished.stdout.splitlines()[-4:] == [
        "found 2, converted 1, left alone 1, AllReduce per step 1",
        "verified: largest relative error 1.2e-07, tolerance 3.4e-06",
        "note: opset raised from 9 to 18",
        "wrote out.onnx",
    ]
    _assert_fits(finished.stdout)
    assert len(commands.calls) == 1


def test_fold_counts_folded(commands: FakeCommands, run: Run) -> None:
    records = [Record(node="bn1", action="folded")]
    commands.rewrite_report = rewrite_report(
        "fold", found=1, records=records, all_reduces=0, notes=[]
    )
    stdout = run("fold", "m.onnx").stdout
    assert "found 1, folded 1, left alone 0, AllReduce per step 0\n" in stdout
    assert _cells(stdout)[:2] == [["node", "action"], ["bn1", "folded"]]


def test_no_verify(commands: FakeCommands, run: Run) -> None:
    commands.rewrite_report = rewrite_report(
        verified=False, max_relative_error=None, tolerance=None
    )
    assert "\nnot verified (--no-verify)\n" in run("m.onnx", "--no-verify").stdout


def test_dry_run_lists_nodes_and_writes_nothing(commands: FakeCommands, run: Run) -> None:
    commands.rewrite_report = rewrite_report(
        verified=False, max_relative_error=None, tolerance=None
    )
    commands.written = None
    stdout = run("m.onnx", "--dry-run").stdout
    assert ["bn1", "64", "float32", "converted"] in _cells(stdout)
    assert "not verified (--dry-run)\n" in stdout
    assert stdout.endswith("nothing written (--dry-run)\n")
    assert "wrote" not in stdout


def test_long_names_are_folded_and_not_lost(commands: FakeCommands, run: Run) -> None:
    commands.rewrite_report = rewrite_report(
        records=[
            Record(
                node=LONG_NAME, action="converted", detail={"channels": 2048, "dtype": "float32"}
            ),
            Record(node=LONG_NAME, action="frozen", reason=LONG_REASON),
        ],
        notes=[LONG_REASON],
    )
    stdout = run("m.onnx").stdout
    _assert_fits(stdout)
    for part in stdout.split("left alone", maxsplit=1):
        first_words = [line.split()[0] for line in part.splitlines() if line.strip()]
        assert LONG_NAME in "".join(first_words)
    assert "".join(LONG_REASON.split()) in "".join(stdout.split("note: ")[1].split())


def test_many_nodes_do_not_flood(commands: FakeCommands, run: Run) -> None:
    converted = [Record(node=f"bn{i}", action="converted") for i in range(10_000)]
    skipped = [Record(node=f"odd{i}", action="skipped", reason="no statistics") for i in range(80)]
    commands.rewrite_report = rewrite_report(records=[*converted, *skipped])
    stdout = run("m.onnx").stdout
    assert ["bn59", "converted"] in _cells(stdout)
    assert "bn60" not in stdout
    assert "... and 9940 more (use --json for all)\n" in stdout
    listing = "".join(f"  odd{i}\n" for i in range(80))
    assert f"left alone (skipped): no statistics\n{listing}\n" in stdout


def test_inspect(commands: FakeCommands, run: Run) -> None:
    commands.inspect_report = InspectReport(
        opset=17,
        ir_version=8,
        nodes=[
            node_info(),
            node_info(name=LONG_NAME, training_mode=True, channels=None, dtype=None),
            node_info(name="inner", location="If_0/then", convertible=False, reason="control flow"),
        ],
    )
    stdout = run("inspect", "m.onnx").stdout
    _assert_fits(stdout)
    cells = _cells(stdout)
    assert ["bn1", "BatchNormalization", "64", "float32", "moving"] in cells
    assert any(row[1:] == ["BatchNormalization", "?", "?", "batch"] for row in cells)
    assert "not convertible: control flow\n  If_0/then: inner\n\n" in stdout
    assert stdout.endswith("found 3, convertible 2, opset 17, IR version 8\n")


def test_inspect_without_normalization(commands: FakeCommands, run: Run) -> None:
    commands.inspect_report = InspectReport(opset=18, ir_version=10, nodes=[])
    assert run("inspect", "m.onnx").stdout == "found 0, convertible 0, opset 18, IR version 10\n"


def test_verify_equal(commands: FakeCommands, run: Run) -> None:
    stdout = run("verify", "a.onnx", "b.onnx").stdout
    assert ["y", "1e-06", "2e-07", "1e-05", "equal"] in _cells(stdout)
    assert stdout.endswith("equal: largest relative error 2e-07, tolerance 1e-05, runs 4\n")
    assert len(commands.calls) == 1


def test_verify_unequal(commands: FakeCommands, run: Run) -> None:
    output = OutputDifference(
        name="y",
        equal=False,
        max_absolute_error=float("nan"),
        max_relative_error=float("inf"),
        tolerance=1e-5,
    )
    commands.verify_report = verify_report(
        equal=False,
        max_relative_error=float("inf"),
        outputs=[output],
        first_difference="conv1",
        notes=["data not used"],
    )
    finished = run("verify", "a.onnx", "b.onnx")
    assert finished.exit_code == 1
    assert ["y", "nan", "inf", "1e-05", "differs"] in _cells(finished.stdout)
    assert finished.stdout.splitlines()[-3:] == [
        "not equal: largest relative error inf, tolerance 1e-05, runs 4",
        "first difference: conv1",
        "note: data not used",
    ]


def test_names_are_no_markup_and_no_escape_sequences(commands: FakeCommands, run: Run) -> None:
    records = [
        Record(node="[bold]bn:smile:", action="converted"),
        Record(node="a\x1b[2J\nb", action="x"),
    ]
    commands.rewrite_report = rewrite_report(records=records)
    stdout = run("m.onnx").stdout
    assert "[bold]bn:smile:" in stdout
    assert r"a\x1b[2J\nb" in stdout


@pytest.mark.parametrize("arguments", [["m.onnx"], ["inspect", "m.onnx"], ["verify", "a", "b"]])
@pytest.mark.usefixtures("commands")
def test_piped_output_is_plain_at_80_columns_whatever_the_environment(
    arguments: list[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(*arguments).stdout
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    assert run(*arguments).stdout == plain
    assert "\x1b" not in plain


@pytest.mark.usefixtures("commands")
def test_a_terminal_gets_colour_unless_no_color(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for no_color, has_colour in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", no_color)
        terminal = Terminal()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", terminal)
            run("m.onnx")
        assert ("\x1b[32mverified" in terminal.getvalue()) == has_colour
        assert "verified: largest relative error" in terminal.getvalue()


@pytest.mark.usefixtures("commands")
def test_quiet_prints_nothing(run: Run) -> None:
    for arguments in (["m.onnx"], ["fold", "m.onnx"], ["verify", "a", "b"]):
        finished = run(*arguments, "--quiet")
        assert (finished.exit_code, finished.stdout, finished.stderr) == (0, "", "")


@pytest.mark.usefixtures("commands")
def test_time_passes_go_to_stderr(run: Run) -> None:
    finished = run("m.onnx", "--time-passes", "-q")
    assert finished.stdout == ""
    assert ["convert_sync_batchnorm", "0.250"] in _cells(finished.stderr)


@pytest.mark.usefixtures("commands")
def test_verbose_logs_stages_to_stderr(run: Run) -> None:
    assert "syncbn_convert: m.onnx: rewrite\n" in run("m.onnx", "-v").stderr
    assert run("m.onnx").stderr == ""


@pytest.mark.usefixtures("commands")
def test_a_terminal_shows_the_stage_on_stderr(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for flags, shown in (([], True), (["-q"], False)):
        terminal = Terminal()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", terminal)
            run("m.onnx", *flags)
        assert ("m.onnx" in terminal.getvalue()) == shown
