"""Signals end a command with its code, one line and nothing left, whatever it is doing."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest

from tests.models import DIGITS

UNTRAINED = DIGITS.with_name("digits_untrained.onnx")
DATA = DIGITS.with_name("digits_train.npz")
TOOL = [sys.executable, "-m", "syncbn_convert"]
TRAIN = [
    *["train", str(UNTRAINED), "--data", str(DATA), "--labels", "label", "--replicas", "3"],
    *["--loss", "softmax-cross-entropy", "--learning-rate", "0.01", "--epochs", "1000", "-q"],
]
CALIBRATE = ["calibrate", str(DIGITS), "--data", str(DATA), "--replicas", "3", "--batch-size", "2"]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
LIMIT = 2.0
"""Seconds in which a command ends; a loaded machine gets `SLACK` more."""
SLACK = 8.0

ENDLESS = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[n, 3] x) => (float[n, 3] y)
<int64 many = {9223372036854775807}, bool go = {1}, float[3] s = {1, 1, 1}, float[3] m = {0, 0, 0}>
{
    z = BatchNormalization(x, s, m, m, s)
    y = Loop(many, go, z) <body = step (int64 i, bool c, float[n, 3] a) => (bool d, float[n, 3] b)
        { d = Identity(c) b = Neg(a) }>
}
"""


def _start(arguments: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    return subprocess.Popen(
        [*TOOL, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def _end(process: subprocess.Popen[str], kind: signal.Signals) -> str:
    start = time.monotonic()
    process.send_signal(kind)
    message = process.communicate(timeout=60)[1]
    assert time.monotonic() - start < LIMIT + SLACK
    assert process.returncode == CODES[kind], message
    return message


def _descendants(pid: int) -> list[int]:
    """Return a process's children and theirs, as Linux tells."""
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*found, *(other for child in found for other in _descendants(child))]


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _holds_on(pid: int) -> bool:
    """Whether a process has come so far that it ends with its parent even if it is stopped."""
    try:
        descriptors = [path.read_text() for path in Path(f"/proc/{pid}/fdinfo").iterdir()]
    except OSError:  # one was closed meanwhile
        return False
    found = [re.search(r"^flags:\s*(\d+)", text, re.MULTILINE) for text in descriptors]
    return any(int(flags[1], 8) & os.O_ASYNC for flags in found if flags)


def _wait_for(condition: object, seconds: float = 60) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _clean(folder: Path) -> None:
    assert list((folder / "temporary").iterdir()) == []
    (folder / "temporary").rmdir()
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("kind", CODES)
def test_while_an_endless_model_is_verified(kind: signal.Signals, tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(ENDLESS), tmp_path / "endless.onnx")
    process = _start(["fuse", "endless.onnx", "-o", "out.onnx"], tmp_path)
    _wait_for(lambda: len(_descendants(process.pid)) == 2)
    children = _descendants(process.pid)
    assert _end(process, kind) == f"error: ended by {kind.name}\n"
    assert not any(map(_is_alive, children))
    _clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["endless.onnx"]


def test_children_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(ENDLESS), tmp_path / "endless.onnx")
    process = _start(["fuse", "endless.onnx", "-o", "out.onnx"], tmp_path)
    _wait_for(lambda: len(_descendants(process.pid)) == 2)
    children = _descendants(process.pid)
    _wait_for(lambda: _holds_on(children[-1]))
    os.kill(children[-1], signal.SIGSTOP)
    process.kill()
    process.communicate(timeout=60)
    _wait_for(lambda: not any(map(_is_alive, children)), 10)
    assert (tmp_path / ".out.onnx.in-progress").exists()
    again = _start(["fuse", str(DIGITS), "-o", "out.onnx", "--no-verify"], tmp_path)
    assert again.communicate(timeout=60)[1] == ""
    _clean(tmp_path)


def test_a_process_that_hears_nothing_is_ended(tmp_path: Path) -> None:
    """As one is that a checker or parser keeps busy."""
    (tmp_path / "deaf.py").write_text(
        "import signal, time\n"
        "def data():\n"
        "    for name in ('SIGINT', 'SIGTERM', 'SIGHUP'):\n"
        "        signal.signal(getattr(signal, name), signal.SIG_IGN)\n"
        "    open('began', 'w').close()\n"
        "    time.sleep(60)\n"
        "    yield {}\n"
    )
    command = ["calibrate", str(DIGITS), "--data", "deaf:data", "-o", "out.onnx"]
    process = _start(command, tmp_path)
    _wait_for((tmp_path / "began").exists)
    assert _end(process, signal.SIGTERM) == "error: ended by SIGTERM\n"
    _clean(tmp_path)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("checkpoint", [False, True])
def test_train_says_how_to_go_on(checkpoint: bool, tmp_path: Path) -> None:
    flags = ["--checkpoint", "kept", "--checkpoint-every", "1"] if checkpoint else []
    process = _start([*TRAIN, "-o", "out.onnx", *flags], tmp_path)
    if checkpoint:
        _wait_for((tmp_path / "kept" / "checkpoint.safetensors").exists)
    else:
        _wait_for((tmp_path / ".out.onnx.in-progress").exists)
        time.sleep(1.5)
    message = _end(process, signal.SIGINT)
    _clean(tmp_path)
    if checkpoint:
        assert message.startswith("error: ended by SIGINT; kept holds step ")
        assert message.endswith(", give the same command --resume to go on from it\n")
        assert [p.name for p in (tmp_path / "kept").iterdir()] == ["checkpoint.safetensors"]
    else:
        assert message.startswith("error: ended by SIGINT")
        assert message.count("\n") == 1


@pytest.mark.parametrize("command", [TRAIN, CALIBRATE], ids=["train", "calibrate"])
@pytest.mark.parametrize("moment", [0.4, 2.5])
def test_replicas_in_threads(command: list[str], moment: float, tmp_path: Path) -> None:
    process = _start([*command, "-o", "out.onnx"], tmp_path)
    time.sleep(moment)
    message = _end(process, signal.SIGINT)
    assert message.startswith("error: ended by SIGINT")
    assert message.count("\n") == 1
    _clean(tmp_path)


@pytest.mark.sweep
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("command", [TRAIN, CALIBRATE], ids=["train", "calibrate"])
def test_replicas_in_threads_at_any_moment(command: list[str], tmp_path: Path) -> None:
    moments = random.Random(0)
    for _ in range(20):
        test_replicas_in_threads(command, moments.uniform(0.05, 4), tmp_path)


def test_sighup_stays_ignored_under_nohup(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(ENDLESS), tmp_path / "endless.onnx")
    arguments = ["fuse", "endless.onnx", "-o", "out.onnx"]
    process = subprocess.Popen(
        [*TOOL, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    _wait_for(lambda: len(_descendants(process.pid)) == 2)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    process.terminate()
    assert process.wait(60) == 143
