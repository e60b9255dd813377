"""Nothing that a command reads is written, and no two results have one place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.conftest import Run
from tests.models import DIGITS

DATA = DIGITS.with_name("digits_test.npz")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(DIGITS, "good.onnx")
    np.savez("few.npz", image=np.zeros((4, 8, 8, 1), np.float32))
    (tmp_path / "many").mkdir()
    shutil.copy("few.npz", "many/one.npz")
    Path("link").symlink_to("good.onnx")
    return tmp_path


def _content() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("convert good.onnx -o o.onnx --report good.onnx", "is an input"),
        ("fuse good.onnx -o o.onnx --report ./good.onnx", "is an input"),
        ("fuse good.onnx -o o.onnx --json=link", "is an input"),
        ("inspect good.onnx --json=link", "is an input"),
        ("verify good.onnx good.onnx --report link", "is an input"),
        ("convert good.onnx -o o.onnx --report o.onnx", "are both o.onnx"),
        ("convert good.onnx --report good.sync.onnx", "are both good.sync.onnx"),
        ("fuse good.onnx --json=good.fused.onnx.data", "are both good.fused.onnx.data"),
        ("fuse good.onnx -o o.onnx --json=p --report p", "are both p"),
        ("calibrate good.onnx --data few.npz -o few.npz", "is an input"),
        ("calibrate good.onnx --data few.npz -o o.onnx --report few.npz", "is an input"),
        ("calibrate good.onnx --data many -o o.onnx --report many/one.npz", "among the data"),
        ("calibrate good.onnx --data few.npz -o o --statistics-out o", "are both o"),
        ("calibrate good.onnx --data few.npz --statistics-out good.onnx", "is an input"),
        ("convert good.onnx -o o.onnx --json=absent/x.json", "absent/x.json: cannot be written"),
        ("convert good.onnx -o o.onnx --json=many", "many: is a folder"),
        ("convert good.onnx -o /dev/null", "/dev/null: is a device or pipe"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_refused_before_work(run: Run, command: str, named: str, force: bool) -> None:
    before = _content()
    finished = run(*command.split(), *(["--force"] if force and "inspect" not in command else []))
    if force and command.startswith(("inspect", "verify")):
        finished = run(*command.split())
    assert finished.exit_code == 2, finished.stderr
    assert finished.stderr.count("\n") == 1
    assert named in finished.stderr
    assert _content() == before


def test_weights_of_the_input(run: Run) -> None:
    onnx.save(onnx.load("good.onnx"), "m.onnx", save_as_external_data=True, location="w.bin")
    finished = run("inspect", "m.onnx", "--json=w.bin")
    assert finished.exit_code == 2
    assert "holds weights of m.onnx" in finished.stderr


def test_devices_take_json(run: Run) -> None:
    assert run("inspect", "good.onnx", "--json=/dev/null").exit_code == 0


def test_json_goes_through_a_link(run: Run) -> None:
    Path("old.json").write_text("old")
    Path("to.json").symlink_to("old.json")
    assert run("inspect", "good.onnx", "--json=to.json", "-q").exit_code == 0
    assert Path("to.json").is_symlink()
    assert Path("old.json").read_text().startswith("{")


def _written_to(pipe: Path, content: bytes) -> threading.Thread:
    os.mkfifo(pipe)
    thread = threading.Thread(target=lambda: pipe.write_bytes(content))
    thread.start()
    return thread


def test_a_model_comes_through_a_pipe(run: Run, folder: Path) -> None:
    writer = _written_to(folder / "pipe", Path("good.onnx").read_bytes())
    finished = run("fuse", "pipe", "-o", "o.onnx")
    writer.join()
    assert finished.exit_code == 0, finished.stderr
    assert run("verify", "good.onnx", "o.onnx").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("convert pipe", "pipe: is a pipe, beside which no result can stand; give -o FILE"),
        ("convert pipe -o o.onnx", "pipe: is a pipe that nobody writes to; start what writes a "),
        ("inspect /dev/zero", "/dev/zero: is a device or socket; give a file or a pipe"),
        (
            "calibrate good.onnx --data pipes -o o.onnx",
            "pipes: the folder holds no .npz file and no .npy file;",
        ),
        ("calibrate good.onnx --data pipe -o o.onnx", "pipe: is no regular file; give an .npz "),
        ("verify good.onnx good.onnx --data pipes", "pipes: no .npz file there; --data takes"),
    ],
)
def test_pipes_that_nobody_writes_to(run: Run, arguments: str, message: str) -> None:
    os.mkfifo("pipe")
    Path("pipes").mkdir()
    os.mkfifo("pipes/x.npz")
    finished = run(*arguments.split())
    assert finished.exit_code == 2
    assert finished.stderr.startswith(f"error: {message}")
    assert finished.stderr.count("\n") == 1


def test_what_comes_through_a_pipe_is_called_by_its_name(run: Run, folder: Path) -> None:
    writer = _written_to(folder / "pipe", b"no model")
    finished = run("inspect", "pipe")
    writer.join()
    assert finished.exit_code == 2
    assert finished.stderr.startswith("error: pipe: not an ONNX model")


@pytest.mark.parametrize(
    ("redirection", "code"),
    [
        ("inspect good.onnx >&-", 2),
        ("convert good.onnx --no-verify -q >&-", 0),
        ("inspect absent.onnx 2>&-", 2),
        ("inspect absent.onnx 2>/dev/full", 2),
        ("inspect good.onnx -v 2>/dev/full >/dev/null", 0),
        ("inspect good.onnx >/dev/full 2>/dev/full", 2),
    ],
)
def test_streams_that_cannot_be_written(redirection: str, code: int) -> None:
    command = f"{sys.executable} -m syncbn_convert {redirection}"
    finished = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == code, finished.stderr
    assert finished.stderr.count("\n") <= 1


def test_a_stream_without_the_characters() -> None:
    model = onnx.load("good.onnx")
    model.graph.node[1].name = "\N{GRINNING FACE}\x1b[31m"
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            node.name = f"\N{GRINNING FACE}\x1b[31m{node.name}"
    onnx.save(model, "named.onnx")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for flags in (["-v"], ["--print-between-passes"]):
        finished = subprocess.run(
            [sys.executable, "-m", "syncbn_convert", "named.onnx", "--dry-run", *flags],
            capture_output=True,
            timeout=60,
            check=True,
            env=environment,
        )
        assert b"\x1b" not in finished.stdout + finished.stderr
        assert b"\\x1b[31m" in finished.stdout
        assert b"\\x1b[31m" in finished.stderr
        assert b"\\U0001f600" in finished.stdout
