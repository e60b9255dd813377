"""Two processes on this machine as two hosts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.launch import ROOT, on_replicas
from tests.training.digits import TRAIN, UNTRAINED

_LIMIT = 150
_COMMAND = [sys.executable, "-m", "syncbn_convert", "train", str(UNTRAINED)]
_DATA = ["--data", str(TRAIN), "--labels", "label", "--loss", "softmax-cross-entropy"]
_HOW = ["--learning-rate", "0.05", "--momentum", "0.9", "--batch-size", "200", "--engine", "xla"]


def arguments(output: Path, *more: str, replicas: int = 1) -> list[str]:
    rest = ["--no-verify", "--replicas", str(replicas), "-o", str(output), *more]
    return [*_COMMAND, *_DATA, *_HOW, *rest]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def hosts(folder: Path, *more: str) -> list[subprocess.Popen[str]]:
    where = ["--coordinator", f"127.0.0.1:{free_port()}", "--hosts", "2"]
    return [
        start(arguments(folder / "out.onnx", *where, "--host-id", str(host), *more), folder)
        for host in range(2)
    ]


def losses_of_one(folder: Path) -> list[float]:
    alone = start(arguments(folder / "alone.onnx", "--json", replicas=2), folder)
    said, errors = alone.communicate(timeout=_LIMIT)
    assert alone.returncode == 0, errors
    losses: list[float] = json.loads(said)["losses"]
    return losses


@pytest.mark.sweep
def test_two_hosts_have_the_numbers_of_one(tmp_path: Path) -> None:
    processes = hosts(tmp_path, "--json")
    said = [process.communicate(timeout=_LIMIT) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert not said[1][0]
    report = json.loads(said[0][0])
    assert (report["engine"], report["replicas"]) == ("xla", 2)
    assert report["losses"] == pytest.approx(losses_of_one(tmp_path), rel=1e-6)


@pytest.mark.sweep
def test_under_mpirun(tmp_path: Path) -> None:
    finished = on_replicas("mpi", 2, arguments(tmp_path / "out.onnx", "--json"))
    assert finished.exit_code == 0, finished.stderr
    report = json.loads(finished.stdout[finished.stdout.index("{") :])
    assert report["losses"] == pytest.approx(losses_of_one(tmp_path), rel=1e-6)


@pytest.mark.sweep
def test_killed_host_ends_the_other_with_a_line(tmp_path: Path) -> None:
    processes = hosts(tmp_path, "-v", "--epochs", "100000")
    other = processes[0]
    assert other.stderr is not None
    for line in other.stderr:
        if "step 10," in line:
            break
    processes[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    errors = [line for line in other.stderr if "error: " in line]
    assert other.wait(60) == 1
    assert time.monotonic() - killed < 30
    assert [line.strip() for line in errors] == ["error: host 1 went away; see its output"]
    for process in processes:
        process.communicate()
