"""Training through XLA beside training on ONNX Runtime; runs in the child."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from syncbn_convert import ReplicaOptions, Sgd, StepOptions, TrainOptions
from syncbn_convert.commands.train import train_with_report
from syncbn_convert.options.accelerators import AcceleratorOptions
from syncbn_convert.options.schedules import Schedule
from syncbn_convert.training.results import TrainReport
from tests.training.digits import Array, weights_of

LOSS, WEIGHTS = 1e-5, 1e-4
_SMALL = 1e-3
"""What tensors that begin at zero, and hardly move, count for."""
CLASSES = StepOptions(loss="softmax-cross-entropy", labels="label", optimizer=Sgd(momentum=0.9))


def trained(
    engine: str,
    model: Any,
    data: Path,
    step: StepOptions = CLASSES,
    *,
    devices: int = 4,
    rate: float = 0.05,
    accelerators: AcceleratorOptions = AcceleratorOptions(),
    eval_data: Path | None = None,
    checkpointing: Any = None,
    **options: Any,
) -> tuple[dict[str, Array], TrainReport]:
    """Weights and statistics after training, and the report."""
    found, report = train_with_report(
        model,
        data,
        step,
        TrainOptions(schedule=Schedule(learning_rate=rate), **{"shuffle": False, **options}),
        eval_data=eval_data,
        replicas=ReplicaOptions(
            engine=engine, replicas=devices, threads_per_replica=1, accelerators=accelerators
        ),
        checkpointing=checkpointing,
    )
    return weights_of(found), report


def require_alike(model: Any, data: Path, step: StepOptions = CLASSES, **options: Any) -> None:
    """Train on both engines and compare losses, accuracies, weights and statistics."""
    found, report = trained("xla", model, data, step, **options)
    wanted, expected = trained("threads", model, data, step, **options)
    assert report.engine == "xla"
    assert report.replicas == expected.replicas
    np.testing.assert_allclose(report.losses, expected.losses, rtol=LOSS)
    for one, other in zip(report.epochs, expected.epochs, strict=True):
        assert one.accuracy == other.accuracy
        assert one.eval_accuracy == other.eval_accuracy
        if other.eval_loss is not None:
            assert one.eval_loss is not None
            assert abs(one.eval_loss - other.eval_loss) <= 10 * LOSS * other.eval_loss
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        error = np.max(np.abs(found[name] - value.astype(np.float64)), initial=0.0)
        assert error <= WEIGHTS * np.max(np.abs(value), initial=_SMALL), f"{name}: {error}"
