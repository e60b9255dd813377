"""A small network of PyTorch, and what its exporters make of it."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.onnx import TrainingMode

from tests.harness import Array

IMAGE = (3, 6, 6)
MODULES = ["stem.1", "layer1.0.bn1", "layer1.0.bn2"]
"""Paths of the BatchNormalization modules."""


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 4, H, W] to the same."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + x)


class Network(nn.Module):
    """Stem, one block, and a head that flattens as torchvision's do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.layer1 = nn.Sequential(Block())
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] to [N, 5]."""
        y = nn.functional.adaptive_avg_pool2d(self.layer1(self.stem(image)), 1)
        return self.fc(self.drop(torch.flatten(y, 1)))  # type: ignore[no-any-return]


def network() -> Network:
    """Return a network in inference mode, its moving statistics those of some batches."""
    torch.manual_seed(0)
    made = Network().train()
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.3)
        for _ in range(3):
            made(torch.randn(16, *IMAGE) * 2 + 1)
    return made.eval()


def images(count: int = 6) -> Array:
    """Return float32 [count, 3, H, W]."""
    return np.random.default_rng(1).normal(1, 2, (count, *IMAGE)).astype(np.float32)


def inference(image: Array, exported: Path) -> Array:
    """Return what PyTorch computes in inference mode, in float64.

    An export in training mode runs the module once, which moves its statistics: they are taken from
    the file.
    """
    made = network().double()
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(exported).graph.initializer}
    for name, buffer in made.named_buffers():
        if name in held:
            buffer.copy_(torch.from_numpy(held[name].copy()))
    with torch.no_grad():
        output: Array = made(torch.from_numpy(image).double()).numpy()
    return output


def export_all(folder: Path) -> None:
    """Export the network in every way, each into a file of its own in `folder`."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for mode in (TrainingMode.EVAL, TrainingMode.PRESERVE, TrainingMode.TRAINING):
            _by_script(network(), mode, folder / f"script_{mode.name.lower()}.onnx")
        program = _by_dynamo(network())
        program.save(str(folder / "unoptimized.onnx"), external_data=True)
        program.save(str(folder / "unoptimized_in_one_file.onnx"))
        program.optimize()
        program.save(str(folder / "optimized.onnx"), external_data=True)
        _by_dynamo(network().train()).save(str(folder / "unoptimized_training.onnx"))


def _by_script(made: Network, mode: TrainingMode, path: Path) -> None:
    torch.onnx.export(
        made,
        (torch.zeros(2, *IMAGE),),
        str(path),
        dynamo=False,
        training=mode,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}},
    )


def _by_dynamo(made: Network) -> torch.onnx.ONNXProgram:
    program = torch.onnx.export(
        made,
        (torch.zeros(2, *IMAGE),),
        dynamo=True,
        optimize=False,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),
        verbose=False,
    )
    assert program is not None
    return program
