"""A training run that may kill its own process; `python -m tests.training.interrupted JSON`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from syncbn_convert import Checkpointing, ReplicaOptions, StepOptions, TrainOptions
from syncbn_convert.commands.train import train_file
from syncbn_convert.options.optimizers import optimizer_from
from syncbn_convert.options.schedules import Schedule
from syncbn_convert.training.loop import Update

from .digits import UNTRAINED


def run(settings: dict[str, Any]) -> None:
    """Train; with `kill` set, SIGKILL ends the process after that many updates."""

    def progress(state: Update) -> None:
        if state.step == settings.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)

    train_file(
        UNTRAINED,
        settings["data"],
        Path(settings["output"]),
        StepOptions(
            loss="softmax-cross-entropy",
            labels="label",
            optimizer=optimizer_from(settings["optimizer"], **settings.get("options", {})),
        ),
        TrainOptions(
            schedule=Schedule(learning_rate=0.01, kind="cosine", warmup=2),
            epochs=settings["epochs"],
            batch_size=settings["batch_size"],
            accumulate=settings.get("accumulate", 1),
            seed=3,
        ),
        eval_data=settings.get("eval_data"),
        replicas=ReplicaOptions(
            replicas=settings.get("replicas", 1), threads_per_replica=1, timeout=60
        ),
        checkpointing=Checkpointing(
            folder=Path(settings["checkpoint"]), resume=True, every=settings.get("every")
        ),
        verify=False,
        force=True,
        progress=progress,
    )


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
