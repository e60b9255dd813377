"""Models of PyTorch train here as in PyTorch in float64, parameter by parameter."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from syncbn_convert import ConvertOptions, Schedule, StepOptions, TrainOptions, convert_file, fold
from syncbn_convert.commands.train import train_with_report
from syncbn_convert.errors import ConversionError

from .digits import require_close, weights_of

RATE, BATCH, EPOCHS, COUNT = 0.1, 16, 2, 40
CLOSE = 3e-6
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 4, COUNT)


class Chain(nn.Module):
    """Two normalizations between linear layers."""

    def __init__(self, *norms: nn.Module) -> None:
        super().__init__()
        self.begin, self.first = nn.Linear(6, 8, bias=False), norms[0]
        self.middle, self.second = nn.Linear(8, 8, bias=False), norms[1]
        self.end = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(self.begin(x)))
        found: torch.Tensor = self.end(torch.relu(self.second(self.middle(x))))
        return found


class Encoder(nn.Module):
    """Attention, whose sizes the exporter computes from shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        self.norm, self.end = nn.BatchNorm1d(3), nn.Linear(18, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.end(self.norm(self.attention(x)).flatten(1))
        return found


def one_in_inference() -> nn.Module:
    still = nn.BatchNorm1d(8).eval()
    assert still.running_mean is not None
    nn.init.uniform_(still.running_mean, -1, 1)
    return Chain(still, nn.BatchNorm1d(8))


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], bool]] = {
    "tied by equal values": (lambda: Chain(nn.LayerNorm(8), nn.LayerNorm(8)), (6,), False),
    "no gamma and beta": (
        lambda: Chain(nn.BatchNorm1d(8), nn.BatchNorm1d(8, affine=False)),
        (6,),
        True,
    ),
    "one normalization in inference mode": (one_in_inference, (6,), True),
    "no normalization": (lambda: Chain(nn.Identity(), nn.Identity()), (6,), True),
    "sizes from shapes": (Encoder, (3, 6), True),
}


def export(net: nn.Module, x: Any, path: Path, *, training: bool) -> Path:
    mode = torch.onnx.TrainingMode.PRESERVE
    given = copy.deepcopy(net) if training else copy.deepcopy(net).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            given,
            (torch.tensor(x[:2]),),
            str(path),
            input_names=["x"],
            output_names=["y"],
            dynamo=False,
            training=mode,
            dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
            do_constant_folding=not training,
        )
    return path


def by_torch(net: nn.Module, x: Any) -> tuple[dict[str, Any], list[float]]:
    wide = copy.deepcopy(net).double()
    optimizer = torch.optim.SGD(wide.parameters(), RATE)
    losses = []
    for _ in range(EPOCHS):
        for at in range(0, COUNT, BATCH):
            optimizer.zero_grad()
            scores = wide(torch.tensor(x[at : at + BATCH]).double())
            loss = nn.functional.cross_entropy(scores, torch.tensor(LABELS[at : at + BATCH]))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return {name: value.detach().numpy() for name, value in wide.named_parameters()}, losses


def train(path: Path, x: Any, **options: Any) -> tuple[onnx.ModelProto, Any]:
    return train_with_report(  # type: ignore[return-value]
        onnx.load(path),
        {"x": x, "label": LABELS},
        StepOptions(loss="softmax-cross-entropy", labels="label", **options),
        TrainOptions(
            schedule=Schedule(learning_rate=RATE), epochs=EPOCHS, batch_size=BATCH, shuffle=False
        ),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained_as_in_torch(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, shape, training = KINDS[kind]
    net, x = make(), RANDOM.normal(size=(COUNT, *shape)).astype(np.float32)
    wanted, losses = by_torch(net, x)
    form, report = train(export(net, x, tmp_path / "net.onnx", training=training), x)
    np.testing.assert_allclose(report.losses, losses, rtol=CLOSE)
    assert report.parameters == len(wanted)
    weights = weights_of(form)
    named = {name: value for name, value in wanted.items() if name in weights}
    assert len(named) >= len(wanted) / 2  # matrices may be stored transposed, under other names
    assert all(name in weights for name in wanted if "bias" in name or "first" in name)
    require_close({name: weights[name] for name in named}, named, CLOSE)
    notes = " ".join(report.notes)
    assert ("trained each on its own" in notes) == (kind == "tied by equal values")
    assert ("in inference mode beside others" in notes) == ("inference mode" in kind)


def test_what_convert_froze_stays_frozen_until_it_is_folded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = RANDOM.normal(size=(COUNT, 6)).astype(np.float32)
    net = Chain(nn.BatchNorm1d(8), nn.BatchNorm1d(8))
    path = export(net, x, tmp_path / "net.onnx", training=False)
    before = weights_of(onnx.load(path))
    for pattern, frozen in ((".", ("first", "second")), ("first", ("first",))):
        form = tmp_path / "form.onnx"
        convert_file(path, form, ConvertOptions(freeze=(pattern,)), verify=False, force=True)
        trained, report = train(form, x)
        weights = weights_of(trained)
        for name, value in before.items():
            kept = name.startswith(frozen)
            assert np.array_equal(weights[name], value) == kept, name
        assert report.parameters == 4 + 2 * (2 - len(frozen))
    folded = fold(onnx.load(form), verify=False)
    assert isinstance(folded, onnx.ModelProto)
    onnx.save(folded, tmp_path / "folded.onnx")
    _, report = train(tmp_path / "folded.onnx", x)
    assert report.parameters == 8


@pytest.mark.parametrize("options", [{"frozen": ("bakcbone",)}, {"trainable": ("end", "absent")}])
def test_expressions_that_match_nothing_are_refused(
    options: dict[str, Any], tmp_path: Path
) -> None:
    x = RANDOM.normal(size=(COUNT, 6)).astype(np.float32)
    net = Chain(nn.BatchNorm1d(8), nn.BatchNorm1d(8))
    path = export(net, x, tmp_path / "net.onnx", training=True)
    with pytest.raises(ConversionError, match="matches no parameter; the first of 8 is named"):
        train(path, x, **options)
