"""What goes wrong on one of two processes ends both, with a message, and leaves nothing behind."""

from __future__ import annotations

import re
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.models import DIGITS, batchnorm_model, make_layer

from .launch import ROOT, Launcher, on_replicas, run

SYNCBN = [sys.executable, "-m", "syncbn_convert"]
OF_THE_RANK = 'exec "$@" "model-${OMPI_COMM_WORLD_RANK:-$RANK}.onnx"'
REPORTED = {
    "raises": r"error: replica 1: data 'tests\.faults\.samples:raises' raised ValueError: the disk "
    "is gone; correct the function",
    "ends_early": "error: replica 1 ran out of data after 2 batches, the others did not; .*",
    "not_a_number": "error: node 'stem_bn': batch statistics are not finite in step 3, from "
    "replica 1; .*",
    "stalls": r"error: replica 0 waited 5 s in .*; raise --collective-timeout .*",
}


def _calibrate(folder: Path, data: str) -> list[str]:
    flags = ["--batch-size", "8", "--no-verify"]
    outputs = ["-o", str(folder / "out.onnx"), "--statistics-out", str(folder / "out.safetensors")]
    return [*SYNCBN, "calibrate", "--data", data, *flags, *outputs]


@pytest.mark.parametrize(
    ("launcher", "fault"),
    [
        *(("mpi", fault) for fault in sorted(REPORTED)),
        *(("torch", fault) for fault in ("ends_early", "raises", "stalls")),
    ],
)
def test_fault_in_the_data_of_one_replica(fault: str, launcher: Launcher, tmp_path: Path) -> None:
    command = [*_calibrate(tmp_path, f"tests.faults.samples:{fault}"), str(DIGITS)]
    if fault == "stalls":
        command += ["--collective-timeout", "5"]
    finished = on_replicas(launcher, 2, command)
    assert finished.exit_code == 1
    assert finished.stdout == ""
    assert len(finished.errors) == 1, finished.stderr
    assert re.fullmatch(REPORTED[fault], finished.errors[0])
    left = [path.name for path in tmp_path.iterdir()]
    killed = fault == "stalls"  # by the launcher, which does not wait; the next run clears up
    assert all(killed and name.endswith(".in-progress") for name in left), left


@pytest.mark.parametrize(
    ("launcher", "named"),
    [
        ("mpi", r"process rank 1 with PID \d+ on node \S+ exited on\s+signal 9"),
        ("torch", r"rank +: 1 \(local_rank: 1\)\s+exitcode +: -9"),
    ],
)
def test_a_replica_is_killed(launcher: Launcher, named: str, tmp_path: Path) -> None:
    command = [*_calibrate(tmp_path, "tests.faults.samples:killed"), str(DIGITS)]
    finished = on_replicas(launcher, 2, command)
    assert finished.exit_code not in (0, 101)
    assert finished.stdout == ""
    assert re.search(named, finished.stderr), finished.stderr
    assert list(tmp_path.iterdir()) == []


def _models(folder: Path) -> list[str]:
    """Make a model for each replica; return what starts a command on its own."""
    for rank in range(2):
        shutil.copy(DIGITS, folder / f"model-{rank}.onnx")
    return ["sh", "-c", f"cd {folder}; {OF_THE_RANK}", "sh", "env", f"PYTHONPATH={ROOT}"]


def _outputs(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith((".", "out")))


def test_another_model(tmp_path: Path) -> None:
    start = _models(tmp_path)
    model = onnx.load(tmp_path / "model-1.onnx")
    model.graph.initializer[1].CopyFrom(
        onnx.numpy_helper.from_array(
            onnx.numpy_helper.to_array(model.graph.initializer[1]) * 2,
            model.graph.initializer[1].name,
        )
    )
    onnx.save(model, tmp_path / "model-1.onnx")
    command = _calibrate(tmp_path, "tests.faults.samples:good")
    finished = on_replicas("mpi", 2, [*start, *command])
    assert finished.exit_code == 1
    [message] = finished.errors
    assert message.startswith("error: replica 1 differs from replica 0 in model: ")
    assert _outputs(tmp_path) == []


def test_another_dtype(tmp_path: Path) -> None:
    start = _models(tmp_path)
    for rank, dtype in enumerate((np.float32, np.float16)):
        model = batchnorm_model(make_layer(3, dtype=dtype), ["n", 3], dtype=dtype)
        onnx.save(model, tmp_path / f"model-{rank}.onnx")
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 3), np.float32))
    finished = on_replicas("mpi", 2, [*start, *_calibrate(tmp_path, str(tmp_path / "data.npz"))])
    assert finished.exit_code == 1
    assert finished.errors == [
        "error: replica 1 differs from replica 0 in input types: x tensor(float16) against "
        "tensor(float); start all replicas alike"
    ]
    assert _outputs(tmp_path) == []


@pytest.mark.parametrize("launcher", ["mpi", "torch"])
def test_a_model_that_one_replica_does_not_have(launcher: Launcher, tmp_path: Path) -> None:
    start = _models(tmp_path)
    (tmp_path / "model-1.onnx").unlink()
    command = _calibrate(tmp_path, "tests.faults.samples:good")
    finished = on_replicas(launcher, 2, [*start, *command])
    assert finished.exit_code == (2 if launcher == "mpi" else 1)
    [message] = finished.errors
    assert message.startswith("error: replica 1: model-1.onnx: ")
    assert _outputs(tmp_path) == []


def test_an_output_that_exists(tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_text("precious")
    command = [*_calibrate(tmp_path, "tests.faults.samples:good"), str(DIGITS)]
    finished = on_replicas("mpi", 2, command)
    assert finished.exit_code == 2
    [message] = finished.errors
    assert message.endswith("out.onnx: exists; pass --force to replace it")
    assert _outputs(tmp_path) == ["out.onnx"]
    assert (tmp_path / "out.onnx").read_text() == "precious"


def test_only_replica_0_prints_and_writes(tmp_path: Path) -> None:
    command = [*_calibrate(tmp_path, "tests.faults.samples:good"), str(DIGITS)]
    finished = on_replicas("mpi", 2, command)
    assert finished.exit_code == 0, finished.stderr
    assert finished.stdout.count("engine mpi, replicas 2") == 1
    assert finished.stderr == ""
    assert _outputs(tmp_path) == ["out.onnx", "out.safetensors"]


def test_mpi_without_mpirun_is_one_replica(tmp_path: Path) -> None:
    command = [*_calibrate(tmp_path, "tests.faults.samples:good"), str(DIGITS)]
    finished = run([*command, "--engine", "mpi"])
    assert finished.exit_code == 0, finished.stderr
    assert "engine mpi, replicas 1" in finished.stdout


def test_no_mpi_library(tmp_path: Path) -> None:
    command = [*_calibrate(tmp_path, "tests.faults.samples:good"), str(DIGITS)]
    finished = run([*command, "--engine", "mpi"], MPI4PY_LIBMPI="/absent/libmpi.so")
    assert finished.exit_code == 2
    [message] = finished.stderr.splitlines()
    assert message.startswith("error: the mpi engine needs mpi4py and an MPI library (")
    assert "/absent/libmpi.so" in message
    assert message.endswith(": pip install 'syncbn-convert[mpi]'")


def test_the_port_is_taken(tmp_path: Path) -> None:
    command = [*_calibrate(tmp_path, "tests.faults.samples:good"), str(DIGITS)]
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        finished = run(
            [*command, "--engine", "torch"],
            RANK="0",
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
    assert finished.exit_code == 1
    [message] = finished.errors
    assert message.startswith("error: replica 0: torch.distributed cannot start (")
    assert f"port: {port}" in message
    assert "check MASTER_ADDR, MASTER_PORT" in message
    assert _outputs(tmp_path) == []


def test_torch_without_torchrun(tmp_path: Path) -> None:
    command = [*_calibrate(tmp_path, "tests.faults.samples:good"), str(DIGITS)]
    finished = run([*command, "--engine", "torch"])
    assert finished.exit_code == 2
    assert finished.errors == [
        "error: the torch engine needs the environment of torchrun (RANK, WORLD_SIZE, MASTER_ADDR "
        "missing): start with 'torchrun --nproc-per-node N --no-python syncbn-convert …'"
    ]
