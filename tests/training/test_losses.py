"""Losses and own losses on one and on three replicas against torch in float64."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from syncbn_convert import ReplicaOptions, Schedule, StepOptions, TrainOptions
from syncbn_convert.commands.train import train_with_report
from syncbn_convert.errors import ConversionError, ModelFileError, UsageError

from .digits import require_close, weights_of

functional = nn.functional
Tensors = dict[str, torch.Tensor]
Loss = Callable[[torch.Tensor, Tensors], torch.Tensor]
SAMPLES, CLASSES, BATCH, EPOCHS, RATE = 23, 5, 8, 2, 0.3
CLOSE = 2e-6
"""A few roundings of float32 in each of the steps."""
CLASS_WEIGHTS = (1.0, 2.0, 0.5, 0.25, 3.0)
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(SAMPLES, 2, 4, 4)).astype(np.float32)
INDICES = RANDOM.integers(0, CLASSES, (SAMPLES, 4, 4))
PARTLY = np.where(RANDOM.random(INDICES.shape) < 0.4, 255, INDICES)
PARTLY[:3] = 255  # the first of three replicas has nothing that counts
SHARES = RANDOM.dirichlet(np.ones(CLASSES), (SAMPLES, 4, 4)).transpose(0, 3, 1, 2)
SHARES = np.ascontiguousarray(SHARES, dtype=np.float32)
BITS = RANDOM.integers(0, 2, (SAMPLES, 1, 4, 4)).astype(np.float32)
WEIGHTS = RANDOM.random(SAMPLES).astype(np.float32)


class Net(nn.Module):
    """Scores of each pixel; with a loss of its own, that too."""

    def __init__(self, end: str = "", own: Loss | None = None, classes: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, classes, 1)
        self.end, self.own = end, own

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> Any:
        z = self.last(torch.relu(self.norm(self.conv(x))))
        if self.own is not None:
            assert y is not None
            return z, self.own(z, {"y": y})
        if self.end:
            z = z.softmax(1)
        return z.permute(0, 2, 3, 1) if self.end == "last" else z


def export(net: Net, arrays: dict[str, npt.NDArray[Any]], path: Path) -> Path:
    own = net.own is not None
    names = ["x", "y"] if own else ["x"]
    net.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            copy.deepcopy(net),
            tuple(torch.tensor(arrays[name][:3]) for name in names),
            str(path),
            input_names=names,
            output_names=["z", "own"] if own else ["z"],
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            dynamic_axes={name: {0: "n"} for name in ("x", "y", "z")},
        )
    return path


def by_torch(net: Net, arrays: dict[str, npt.NDArray[Any]], loss: Loss) -> tuple[Any, list[float]]:
    wide = copy.deepcopy(net).double()
    optimizer = torch.optim.SGD(wide.parameters(), RATE)
    losses = []
    for _ in range(EPOCHS):
        for start in range(0, SAMPLES, BATCH):
            given = {
                name: torch.tensor(array[start : start + BATCH]) for name, array in arrays.items()
            }
            optimizer.zero_grad()
            if net.own is not None:
                found = wide(given["x"].double(), given["y"])[1]
            else:
                found = loss(wide(given["x"].double()), given)
            found.backward()
            optimizer.step()
            losses.append(found.item())
    parameters = {name: value.detach().numpy() for name, value in wide.named_parameters()}
    return parameters, losses


def compare(
    net: Net,
    arrays: dict[str, npt.NDArray[Any]],
    loss: Loss,
    folder: Path,
    options: dict[str, Any],
) -> None:
    path, data = export(net, arrays, folder / "net.onnx"), folder / "data.npz"
    save: Any = np.savez
    save(data, **arrays)
    wanted, losses = by_torch(net, arrays, loss)
    given = {"loss": "own"} if net.own is not None else {"labels": "y", **options}
    training = TrainOptions(
        schedule=Schedule(learning_rate=RATE), epochs=EPOCHS, batch_size=BATCH, shuffle=False
    )
    for replicas in (1, 3):
        form, report = train_with_report(
            path, data, StepOptions(**given), training, replicas=ReplicaOptions(replicas=replicas)
        )
        np.testing.assert_allclose(report.losses, losses, rtol=CLOSE)
        weights = weights_of(form)
        require_close({name: weights[name] for name in wanted}, wanted, CLOSE)


SOFTMAX = {"loss": "softmax-cross-entropy"}
TORCH_WEIGHTS = torch.tensor(CLASS_WEIGHTS, dtype=torch.float64)
COMPARED: dict[str, tuple[Net, dict[str, npt.NDArray[Any]], Loss, dict[str, Any]]] = {
    "ignored": (
        Net("softmax"),
        {"y": PARTLY},
        lambda p, t: functional.nll_loss(p.log(), t["y"], ignore_index=255),
        {**SOFTMAX, "ignore_index": 255},
    ),
    "axis by the labels": (
        Net(),
        {"y": INDICES},
        lambda z, t: functional.cross_entropy(z, t["y"]),
        SOFTMAX,
    ),
    "behind a Transpose": (
        Net("last"),
        {"y": INDICES},
        lambda p, t: functional.nll_loss(p.permute(0, 3, 1, 2).log(), t["y"]),
        SOFTMAX,
    ),
    "weights of classes": (
        Net(),
        {"y": PARTLY},
        lambda z, t: functional.cross_entropy(
            z, t["y"], TORCH_WEIGHTS, ignore_index=255, label_smoothing=0.1
        ),
        {
            **SOFTMAX,
            "ignore_index": 255,
            "class_weights": CLASS_WEIGHTS,
            "label_smoothing": 0.1,
        },
    ),
    "one-hot": (
        Net(),
        {"y": SHARES},
        lambda z, t: functional.cross_entropy(
            z, t["y"].double(), TORCH_WEIGHTS, label_smoothing=0.2
        ),
        {
            **SOFTMAX,
            "one_hot": True,
            "class_weights": CLASS_WEIGHTS,
            "label_smoothing": 0.2,
            "class_axis": 1,
        },
    ),
    "weights of samples": (
        Net("softmax"),
        {"y": INDICES, "w": WEIGHTS},
        lambda p, t: (
            functional.nll_loss(p.log(), t["y"], reduction="none") * t["w"][:, None, None]
        ).mean(),
        {**SOFTMAX, "weights": "w"},
    ),
    "smoothed bits": (
        Net(classes=1),
        {"y": BITS, "w": WEIGHTS},
        lambda z, t: (
            functional.binary_cross_entropy_with_logits(
                z, t["y"].double() * 0.9 + 0.05, reduction="none"
            )
            * t["w"][:, None, None, None]
        ).mean(),
        {"loss": "binary-cross-entropy", "weights": "w", "label_smoothing": 0.1},
    ),
}


@pytest.mark.parametrize("kind", COMPARED)
def test_compared_losses_are_torchs(kind: str, tmp_path: Path) -> None:
    net, arrays, loss, options = COMPARED[kind]
    compare(net, {"x": X, **arrays}, loss, tmp_path, options)


OWN: dict[str, tuple[Loss, npt.NDArray[Any]]] = {
    "ignored and weighted": (
        lambda z, t: functional.cross_entropy(
            z, t["y"], TORCH_WEIGHTS.to(z.dtype), ignore_index=255
        ),
        PARTLY,
    ),
    "mean over a part": (
        lambda z, t: ((z - t["y"]) ** 2 * (t["y"] > 0.2)).sum() / (t["y"] > 0.2).sum(),
        SHARES,
    ),
    "root and sum": (
        lambda z, t: (z - t["y"]).abs().mean() + 0.1 * (z * z).mean().sqrt(),
        SHARES,
    ),
    "Dice": (
        lambda z, t: 1 - 2 * (z.sigmoid() * t["y"]).sum() / (z.sigmoid().sum() + t["y"].sum() + 1),
        SHARES,
    ),
    "by the number of samples": (
        lambda z, t: 0.01 * ((z - t["y"]) ** 2).sum() / z.shape[0],
        SHARES,
    ),
}


@pytest.mark.parametrize("kind", OWN)
def test_own_losses_are_on_replicas_what_they_are_on_one(kind: str, tmp_path: Path) -> None:
    own, labels = OWN[kind]
    compare(Net(own=own), {"x": X, "y": labels}, own, tmp_path, {})


def test_a_loss_of_no_sums_is_refused_on_replicas(tmp_path: Path) -> None:
    net = Net(own=lambda z, t: ((z - t["y"]) ** 2).amax())
    arrays: dict[str, npt.NDArray[Any]] = {"x": X, "y": SHARES}
    path, data = export(net, arrays, tmp_path / "net.onnx"), tmp_path / "data.npz"
    save: Any = np.savez
    save(data, **arrays)
    options = TrainOptions(schedule=Schedule(learning_rate=0.01), batch_size=BATCH)
    _, report = train_with_report(path, data, StepOptions(loss="own"), options)
    assert np.isfinite(report.losses).all()
    with pytest.raises(ConversionError, match=r"from 2 replicas: .*ReduceMax.* is no sum or mean"):
        train_with_report(
            path, data, StepOptions(loss="own"), options, replicas=ReplicaOptions(replicas=2)
        )


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (255 * BITS.astype(np.uint8), {"loss": "binary-cross-entropy"}, "from 0 to 255, but"),
        (BITS - 0.5, {"loss": "binary-cross-entropy"}, "from -0.5 to 0.5, but"),
        (BITS[:, :, :2], {"loss": "mse"}, r"shape \[23, 1, 2, 4\]"),
        (np.where(BITS > 0, np.nan, 0.0), {"loss": "mse"}, "NaN or infinity"),
        (INDICES[:, None] + 250, SOFTMAX, "name the one that does not count with --ignore-index"),
    ],
)
def test_labels_out_of_range_are_refused(
    labels: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    classes = CLASSES if options is SOFTMAX else 1
    if options is SOFTMAX:
        labels = labels[:, 0]
    path = export(Net(classes=classes), {"x": X}, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=X, y=labels)
    with pytest.raises(ModelFileError, match=message):
        train_with_report(
            path,
            tmp_path / "data.npz",
            StepOptions(labels="y", **options),
            TrainOptions(schedule=Schedule(learning_rate=0.1)),
        )


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "mse", "ignore_index": 1},
        {"loss": "mse", "label_smoothing": 0.1},
        {"loss": "binary-cross-entropy", "class_weights": (1.0,)},
        {**SOFTMAX, "label_smoothing": 1.0},
        {**SOFTMAX, "class_weights": (-1.0, 1.0)},
        {**SOFTMAX, "one_hot": True, "ignore_index": 1},
    ],
    ids=str,
)
def test_options_that_a_loss_does_not_have_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        StepOptions(labels="y", **options)
