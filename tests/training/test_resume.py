"""A run that was killed and resumed ends with the same weights, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from syncbn_convert.errors import ModelFileError, ReplicaError, SyncBNError, UsageError
from syncbn_convert.training import checkpoint as checkpoints
from tests.faults.launch import ROOT, on_replicas

from .digits import TRAIN
from .interrupted import run

STEPS = 8
"""Two epochs of 100 samples in batches of 32, the last of which has 4."""


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    data = tmp_path / "data.npz"
    with np.load(TRAIN) as arrays:
        np.savez(data, image=arrays["image"][:100], label=arrays["label"][:100])
    return {
        "data": str(data),
        "eval_data": str(data),
        "optimizer": "adam",
        "epochs": 2,
        "batch_size": 32,
        "replicas": 2,
    }


def in_folder(settings: dict[str, Any], folder: Path, **further: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    places = {"output": str(folder / "out.onnx"), "checkpoint": str(folder / "checkpoint")}
    return {**settings, **places, **further}


def killed(settings: dict[str, Any]) -> int:
    command = [sys.executable, "-m", "tests.training.interrupted", json.dumps(settings)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=False)
    return done.returncode


def require_same_as_uninterrupted(
    settings: dict[str, Any], kills: list[int], tmp_path: Path
) -> None:
    whole = in_folder(settings, tmp_path / "whole")
    run(whole)
    for step in kills:
        again = in_folder(settings, tmp_path / f"killed-{step}")
        assert killed({**again, "kill": step}) == -signal.SIGKILL
        assert not Path(again["output"]).exists()
        run(again)
        assert Path(again["output"]).read_bytes() == Path(whole["output"]).read_bytes(), step


def test_a_run_that_had_ended_gives_the_same_again(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    again = in_folder(settings, tmp_path / "ended", every=2)
    run(again)
    first = Path(again["output"]).read_bytes()
    Path(again["output"]).unlink()
    run(again)
    assert Path(again["output"]).read_bytes() == first


@pytest.mark.parametrize(
    ("every", "step"), [pytest.param(None, 2, marks=pytest.mark.sweep), (3, 7)]
)
def test_killed_once(
    every: int | None, step: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    require_same_as_uninterrupted({**settings, "every": every}, [step], tmp_path)


@pytest.mark.sweep
@pytest.mark.parametrize("every", [None, 1, 3])
@pytest.mark.parametrize("replicas", [1, 4])
def test_killed_at_any_step(
    replicas: int, every: int | None, settings: dict[str, Any], tmp_path: Path
) -> None:
    given = {**settings, "replicas": replicas, "every": every, "accumulate": 2}
    require_same_as_uninterrupted(given, list(range(1, STEPS + 1)), tmp_path)


@pytest.mark.sweep
def test_killed_again_and_again(settings: dict[str, Any], tmp_path: Path) -> None:
    """One run that dies after every single update."""
    given = {**settings, "every": 1, "optimizer": "sgd", "options": {"momentum": 0.9}}
    run(in_folder(given, tmp_path / "whole"))
    again = in_folder(given, tmp_path / "again")
    for step in range(1, STEPS + 1):
        assert killed({**again, "kill": step}) == -signal.SIGKILL
    run(again)
    first, second = (tmp_path / name / "out.onnx" for name in ("whole", "again"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.sweep
def test_killed_processes(settings: dict[str, Any], tmp_path: Path) -> None:
    """Two MPI processes; the one that counts as replica 0 is killed."""
    given = {**settings, "replicas": 1, "every": 3}
    module = [sys.executable, "-m", "tests.training.interrupted"]
    whole, again = (in_folder(given, tmp_path / name) for name in ("whole", "again"))
    assert on_replicas("mpi", 2, [*module, json.dumps(whole)]).exit_code == 0
    assert on_replicas("mpi", 2, [*module, json.dumps({**again, "kill": 5})]).exit_code != 0
    assert not Path(again["output"]).exists()
    finished = on_replicas("mpi", 2, [*module, json.dumps(again)])
    assert finished.exit_code == 0, finished.stderr
    assert Path(again["output"]).read_bytes() == Path(whole["output"]).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"replicas": 1}, "was made with replicas 2, and this run has 1"),
        ({"batch_size": 50}, "was made with batch_size 32, and this run has 50"),
        ({"optimizer": "adamw"}, "was made with optimizer name"),
    ],
)
def test_another_run_does_not_go_on(
    change: dict[str, Any], message: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    run(in_folder(settings, tmp_path))
    with pytest.raises(SyncBNError, match=message) as caught:
        run(in_folder({**settings, **change}, tmp_path))
    assert isinstance(caught.value, UsageError | ReplicaError)


def test_checkpoint_is_the_whole_state(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    given = checkpoints.Checkpoint(
        identity={"model": "m"},
        step=5,
        epoch=1,
        batch=2,
        sums=[0.1, 2.0, 3.0, 4.0],
        epochs=[{"epoch": 1, "loss": 0.1 + 0.2}],
        losses=[1 / 3, 2 / 3],
        seconds=1.5,
        parameters={"a/b": random.normal(size=(2, 3)).astype(np.float32)},
        slots={"a/b.momentum": random.normal(size=(2, 3)).astype(np.float32)},
        statistics={"m": random.normal(size=3)},
    )
    checkpoints.save(given, tmp_path)
    found = checkpoints.load(tmp_path)
    assert found is not None
    for field in dataclasses.fields(given):
        mine, theirs = getattr(found, field.name), getattr(given, field.name)
        if field.name in ("parameters", "slots", "statistics"):
            assert mine.keys() == theirs.keys()
            for name, array in theirs.items():
                assert mine[name].dtype == array.dtype
                np.testing.assert_array_equal(mine[name], array)
        else:
            assert mine == theirs
    assert [path.name for path in tmp_path.iterdir()] == [checkpoints.FILE]


def test_checkpoint_that_is_none(tmp_path: Path) -> None:
    assert checkpoints.load(tmp_path) is None
    (tmp_path / checkpoints.FILE).write_bytes(b"nonsense")
    with pytest.raises(ModelFileError, match="not a checkpoint of this version"):
        checkpoints.load(tmp_path)
    with pytest.raises(UsageError, match="pass --resume to go on from it, or --force"):
        checkpoints.check_free(tmp_path)
