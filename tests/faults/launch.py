"""Runs the command line on replicas, as mpirun and torchrun do."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[2]
LIMIT = 90
"""Seconds; a replica that waits for ever would wait for the 300 s of --collective-timeout."""

Launcher = Literal["mpi", "torch"]


@dataclasses.dataclass(frozen=True)
class Finished:
    exit_code: int
    stdout: str
    stderr: str

    @property
    def errors(self) -> list[str]:
        """The lines in which the command line itself reports an error.

        A replica that the launcher ends because of another says so.
        """
        lines = self.stderr.replace("\0", "").splitlines()
        found = [line.strip() for line in lines if "error: " in line]
        return [line for line in found if not line.endswith("error: ended by SIGTERM")]


def on_replicas(launcher: Launcher, replicas: int, command: Sequence[str]) -> Finished:
    folder = Path(sys.executable).parent
    if launcher == "mpi":
        start = [str(folder / "mpirun"), "--allow-run-as-root", "--oversubscribe", "-n"]
    else:
        start = [sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node"]
    return run([*start, str(replicas), *command])


def run(command: Sequence[str], **environment: str) -> Finished:
    finished = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=LIMIT,
        check=False,
        cwd=ROOT,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", **environment},
    )
    return Finished(finished.returncode, finished.stdout, finished.stderr)
