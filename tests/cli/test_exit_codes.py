from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from syncbn_convert.cli.main import main
from syncbn_convert.errors import (
    ConversionError,
    ModelFileError,
    SyncBNError,
    UsageError,
    VerificationError,
)

from .conftest import FakeCommands, Run


def _raise(error: BaseException) -> Callable[[], None]:
    def during() -> None:
        raise error

    return during


@pytest.mark.parametrize("command", [[], ["fold"], ["inspect"], ["verify", "a.onnx"]])
@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (SyncBNError("base"), 1),
        (ConversionError("node 'bn1': has no statistics; exclude it"), 1),
        (VerificationError("output 'y' differs"), 1),
        (UsageError("out.onnx exists; give --force"), 2),
        (ModelFileError("m.onnx: no such file"), 2),
    ],
)
def test_errors_are_one_line(
    error: SyncBNError, exit_code: int, command: list[str], commands: FakeCommands, run: Run
) -> None:
    commands.during = _raise(error)
    finished = run(*command, "m.onnx")
    assert finished.exit_code == exit_code
    assert finished.stdout == ""
    assert finished.stderr == f"error: {error}\n"


def test_a_message_of_several_lines_becomes_one(commands: FakeCommands, run: Run) -> None:
    commands.during = _raise(ModelFileError("bad  model:\n  \x1b[31mfield\n"))
    assert run("m.onnx").stderr == "error: bad  model: \\x1b[31mfield\n"


def test_errors_remain_when_quiet(commands: FakeCommands, run: Run) -> None:
    commands.during = _raise(ConversionError("no"))
    assert run("m.onnx", "-q").stderr == "error: no\n"


def test_anything_else_is_a_bug(commands: FakeCommands, run: Run) -> None:
    commands.during = _raise(KeyError("surprise"))
    finished = run("m.onnx")
    assert finished.exit_code == 101
    assert finished.stdout == ""
    assert finished.stderr.startswith("Traceback (most recent call last)")
    assert "KeyError: 'surprise'" in finished.stderr
    assert finished.stderr.splitlines()[-1] == (
        "error: this is a bug in syncbn-convert; please report it together with the traceback above"
    )


def test_keyboard_interrupt(commands: FakeCommands, run: Run) -> None:
    commands.during = _raise(KeyboardInterrupt())
    finished = run("m.onnx")
    assert (finished.exit_code, finished.stdout) == (130, "")
    assert finished.stderr == "error: ended by SIGINT\n"


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_clean_up_and_have_their_code(
    commands: FakeCommands, run: Run, tmp_path: Path, kind: signal.Signals
) -> None:
    temporary = tmp_path / "temporary"
    if signal.getsignal(kind) is signal.SIG_IGN:  # as a shell's background job starts
        signal.signal(kind, signal.SIG_DFL)
    before = signal.getsignal(kind)

    @contextlib.contextmanager
    def staging() -> Iterator[None]:
        temporary.mkdir()
        try:
            yield
        finally:
            temporary.rmdir()

    def during() -> None:
        with staging():
            assert temporary.exists()
            os.kill(os.getpid(), kind)
            raise AssertionError(f"went on after {kind.name}")

    commands.during = during
    finished = run("m.onnx")
    assert (finished.exit_code, finished.stdout) == (128 + kind, "")
    assert finished.stderr == f"error: ended by {kind.name}\n"
    assert not temporary.exists()
    assert signal.getsignal(kind) is before


@pytest.mark.usefixtures("commands")
def test_runs_outside_the_main_thread() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["m.onnx", "-q"])))
    thread.start()
    thread.join()
    assert codes == [0]
