"""The digits and an untrained classifier of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from syncbn_convert import ReplicaOptions, StepOptions, TrainOptions
from syncbn_convert.commands.train import train_with_report
from syncbn_convert.options.optimizers import Optimizer, Sgd
from syncbn_convert.options.schedules import Schedule
from syncbn_convert.training.results import TrainReport

Array = npt.NDArray[Any]

MODELS = Path(__file__).parents[2] / "models"
UNTRAINED = MODELS / "digits_untrained.onnx"
TRAIN = MODELS / "digits_train.npz"
TEST = MODELS / "digits_test.npz"


def batches_file(folder: Path, steps: int, batch_size: int) -> Path:
    """Write the first samples of the training digits, enough for some steps, again from the start
    where they end."""
    path = folder / f"batches-{steps}-{batch_size}.npz"
    with np.load(TRAIN) as data:
        indices = np.arange(steps * batch_size) % len(data["label"])
        np.savez(path, image=data["image"][indices], label=data["label"][indices])
    return path


def train_digits(
    data: Path,
    replicas: int,
    *,
    optimizer: Optimizer,
    learning_rate: float,
    batch_size: int,
    model: Any = UNTRAINED,
    **options: Any,
) -> tuple[dict[str, Array], TrainReport]:
    """Weights and statistics after one epoch in the order of the samples, and the report."""
    given = {"shuffle": False, **options}
    trained, report = train_with_report(
        model,
        data,
        StepOptions(loss="softmax-cross-entropy", labels="label", optimizer=optimizer),
        TrainOptions(
            schedule=Schedule(learning_rate=learning_rate), batch_size=batch_size, **given
        ),
        replicas=ReplicaOptions(replicas=replicas, threads_per_replica=1, timeout=60),
    )
    return weights_of(trained), report


def weights_of(model: ir.Model | onnx.ModelProto) -> dict[str, Array]:
    """Floating-point initializers by name."""
    if isinstance(model, onnx.ModelProto):
        model = ir.from_proto(model)
    found: dict[str, Array] = {}
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        array = value.const_value.numpy()
        if np.issubdtype(array.dtype, np.floating):
            found[str(name)] = array
    return found


def require_close(
    got: Mapping[str, Array], wanted: Mapping[str, Array], rtol: float
) -> dict[str, float]:
    """Compare tensors by name, relative to the largest magnitude of each; return the errors."""
    assert got.keys() == wanted.keys()
    errors = {
        name: float(np.max(np.abs(got[name] - value.astype(np.float64))) / np.max(np.abs(value)))
        for name, value in wanted.items()
    }
    worst = {name: error for name, error in errors.items() if not error <= rtol}
    assert not worst, worst
    return errors


SGD = Sgd(momentum=0.9)
