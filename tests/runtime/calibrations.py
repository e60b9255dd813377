"""Calibrates the sample model twice with each method; a replica of mpirun or torchrun runs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal, get_args

from syncbn_convert import CalibrateOptions, ReplicaOptions
from syncbn_convert.commands.calibrate import calibrate_file
from tests.models import DIGITS

DATA = DIGITS.with_name("digits_train.npz")
Method = Literal["precise", "moving"]
METHODS: tuple[Method, ...] = get_args(Method)
RUNS = 2


def statistics_file(folder: Path, method: Method, run: int) -> Path:
    return folder / f"{method}-{run}.safetensors"


def calibrate_all(folder: Path, replicas: int = 1) -> None:
    """Write the statistics of each method and run; batches of 90 leave a small last one."""
    for method in METHODS:
        for run in range(RUNS):
            calibrate_file(
                DIGITS,
                DATA,
                None,
                CalibrateOptions(method=method, batch_size=90, batches=4, warmup=1),
                replicas=ReplicaOptions(replicas=replicas, threads_per_replica=1),
                statistics_out=statistics_file(folder, method, run),
            )


if __name__ == "__main__":
    calibrate_all(Path(sys.argv[1]))
