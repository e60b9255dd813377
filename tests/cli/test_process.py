from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

HEAVY = ("onnx", "onnx_ir", "onnxruntime", "numpy")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "syncbn_convert", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_is_plain_and_fits() -> None:
    finished = _run("--help")
    assert finished.returncode == 0
    assert finished.stdout.startswith("Usage: syncbn-convert ")
    for command in ("convert", "fold", "inspect", "verify"):
        assert f"\n  {command} " in finished.stdout
    assert max(map(len, finished.stdout.splitlines())) <= 80
    assert finished.stderr == ""


def test_version() -> None:
    finished = _run("--version")
    assert finished.returncode == 0
    assert finished.stdout.startswith("syncbn-convert 0.")
    assert finished.stderr == ""


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from syncbn_convert.cli.main import main\n"
        "main(['convert', '--help'])\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert finished.stderr == "[]\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_with_one_flag(shell: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "syncbn_convert", "--install-completion"]
    environment = {**os.environ, "HOME": str(tmp_path), "SHELL": f"/bin/{shell}"}
    subprocess.run(command, env=environment, capture_output=True, timeout=60, check=True)
    (script,) = (path for path in tmp_path.rglob("*") if "syncbn-convert" in path.name)
    text = script.read_text()
    for word in ("calibrate", "momentum", "epsilon"):
        assert word in text


def test_unknown_flag() -> None:
    finished = _run("model.onnx", "--nonsense")
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.startswith("error: unknown option: --nonsense")
    assert finished.stderr.endswith(" see syncbn-convert convert --help\n")
    assert finished.stderr.count("\n") == 1


def test_missing_model(tmp_path: Path) -> None:
    finished = _run(str(tmp_path / "absent.onnx"))
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1
    assert "absent.onnx" in finished.stderr
    assert list(tmp_path.iterdir()) == []


def _inspect(digits: Path, stdout: IO[str] | int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "syncbn_convert", "inspect", str(digits)]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)


def test_a_reader_that_went_away_is_no_error(digits: Path) -> None:
    with _inspect(digits, subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_stdout_that_cannot_be_written_is_one_line(digits: Path) -> None:
    with Path("/dev/full").open("w") as full, _inspect(digits, full) as process:
        assert process.stderr is not None
        message = process.stderr.read()
    assert process.returncode == 2
    assert message.startswith("error: standard output cannot be written: ")
    assert message.count("\n") == 1
