"""The digits trained by us and by Keras: same weights, same batches, synchronized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from syncbn_convert.options.optimizers import Adam, Optimizer
from tests.parity.keras_training import Run, train

from .digits import SGD, UNTRAINED, batches_file, require_close, train_digits, weights_of

LOSS = 1e-4
WEIGHTS = 1e-3
"""Rounding of single precision, magnified by some tens of steps of a training that is chaotic."""
BATCH_SIZE = 64
KINDS: dict[str, tuple[Optimizer, str, float, int]] = {
    "sgd": (SGD, "SGD", 0.05, 40),
    "adam": (Adam(), "Adam", 0.001, 20),
}


def compare(kind: str, replicas: int, folder: Path) -> None:
    optimizer, name, learning_rate, steps = KINDS[kind]
    data = batches_file(folder, steps, BATCH_SIZE)
    options = {"momentum": 0.9} if kind == "sgd" else {}
    with np.load(data) as arrays:
        run = Run(
            replicas=replicas,
            optimizer=name,
            options={"learning_rate": learning_rate, **options},
            batch_size=BATCH_SIZE,
            weights=weights_of(onnx.load(UNTRAINED)),
            data=dict(arrays),
        )
    wanted = train(run, folder)
    losses = wanted.pop("loss")
    found, report = train_digits(
        data, replicas, optimizer=optimizer, learning_rate=learning_rate, batch_size=BATCH_SIZE
    )
    assert len(losses) == len(report.losses) == steps
    error = np.max(np.abs(np.array(report.losses) - losses) / losses)
    errors = require_close(found, wanted, WEIGHTS)
    worst = max(errors, key=errors.__getitem__)
    print(f"{kind}, {replicas} replicas: loss {error:.2g}, weights {errors[worst]:.2g} ({worst})")
    assert error <= LOSS
    assert losses[-1] < 0.7 * losses[0], "something must be learnt"


@pytest.mark.sweep
@pytest.mark.parametrize(("kind", "replicas"), [("sgd", 2), ("sgd", 4), ("adam", 2), ("adam", 4)])
def test_equals_keras(kind: str, replicas: int, tmp_path: Path) -> None:
    compare(kind, replicas, tmp_path)


@pytest.mark.parametrize("kind", ["sgd", pytest.param("adam", marks=pytest.mark.sweep)])
def test_one_two_and_four_replicas_agree(kind: str, tmp_path: Path) -> None:
    optimizer, _, learning_rate, steps = KINDS[kind]
    data = batches_file(tmp_path, steps, BATCH_SIZE)
    runs = [
        train_digits(
            data, replicas, optimizer=optimizer, learning_rate=learning_rate, batch_size=BATCH_SIZE
        )
        for replicas in (1, 2, 4)
    ]
    weights, report = runs[0]
    for others, other in runs[1:]:
        require_close(others, weights, WEIGHTS)
        np.testing.assert_allclose(other.losses, report.losses, rtol=LOSS)
