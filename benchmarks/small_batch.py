"""Eight replicas with two samples each: synchronized against unsynchronized normalization.

Prints the final test accuracies and draws the curves. Exit code 1: synchronized training was not
the better one.

    python benchmarks/small_batch.py [--epochs N] [--seeds N] [--picture FILE.svg]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from syncbn_convert import ReplicaOptions, StepOptions, TrainOptions, convert
from syncbn_convert.commands.train import train_with_report
from syncbn_convert.options.layers import SyncBatchNormalizationOptions
from syncbn_convert.options.optimizers import Sgd
from syncbn_convert.options.rewrites import ConvertOptions
from syncbn_convert.options.schedules import Schedule

MODELS = Path(__file__).parents[1] / "models"
REPLICAS = 8
SAMPLES_EACH = 2
LEARNING_RATE = 0.02
KINDS = {"synchronized": 0, "unsynchronized": 1}
"""Replicas that share statistics; 0 is all."""


def accuracies(group_size: int, epochs: int, seed: int) -> list[float]:
    """Return the test accuracy of the inference form after each epoch."""
    options = ConvertOptions(parameters=SyncBatchNormalizationOptions(group_size=group_size))
    form = convert(MODELS / "digits_untrained.onnx", options, verify=False)
    _, report = train_with_report(
        form,
        MODELS / "digits_train.npz",
        StepOptions(loss="softmax-cross-entropy", labels="label", optimizer=Sgd(momentum=0.9)),
        TrainOptions(
            schedule=Schedule(learning_rate=LEARNING_RATE, kind="cosine"),
            epochs=epochs,
            batch_size=REPLICAS * SAMPLES_EACH,
            seed=seed,
        ),
        eval_data=MODELS / "digits_test.npz",
        replicas=ReplicaOptions(replicas=REPLICAS, threads_per_replica=1),
    )
    return [float(epoch.eval_accuracy or 0.0) for epoch in report.epochs]


def draw(curves: dict[str, npt.NDArray[np.float64]], path: Path) -> None:
    """Draw the mean over the seeds, and the range."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "small_batch"
    mpl.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for kind, values in curves.items():
        epochs = np.arange(1, values.shape[1] + 1)
        axes.plot(epochs, 100 * values.mean(axis=0), marker="o", markersize=3, label=kind)
        axes.fill_between(epochs, 100 * values.min(axis=0), 100 * values.max(axis=0), alpha=0.2)
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(f"{REPLICAS} replicas with {SAMPLES_EACH} samples each", loc="left")
    axes.grid(axis="y", alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--picture", type=Path, default=None)
    given = parser.parse_args(arguments)
    curves = {
        kind: np.array([accuracies(group_size, given.epochs, seed) for seed in range(given.seeds)])
        for kind, group_size in KINDS.items()
    }
    print(f"{REPLICAS} replicas, {SAMPLES_EACH} samples each, {given.epochs} epochs")
    for kind, values in curves.items():
        each = ", ".join(f"{100 * value:.1f} %" for value in values[:, -1])
        print(f"{kind:15} final test accuracy {100 * values[:, -1].mean():.1f} % ({each})")
    if given.picture is not None:
        draw(curves, given.picture)
    better = curves["synchronized"][:, -1].mean() > curves["unsynchronized"][:, -1].mean()
    return 0 if better else 1


if __name__ == "__main__":
    sys.exit(main())
