"""Train digits_cnn on, twice, and write the average of both weights: `python … OUT.npz`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")

import keras
import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper as onh

Array = npt.NDArray[Any]

MODELS = Path(__file__).parents[2] / "models"
EPOCHS = 2
SEEDS = (1, 2)
LEARNING_RATE = 1e-3
TO_KERAS = {"depthwise": (2, 3, 0, 1), "conv": (2, 3, 1, 0)}
TO_ONNX = {"depthwise": (2, 3, 0, 1), "conv": (3, 2, 0, 1)}


def main(output: Path) -> None:
    """Write the averaged weights under the names of the ONNX initializers."""
    proto = onnx.load(MODELS / "digits_cnn.onnx")
    start = {tensor.name: onh.to_array(tensor) for tensor in proto.graph.initializer}
    first, second = (train(start, seed) for seed in SEEDS)
    averaged = {name: (value + second[name]) / 2 for name, value in first.items()}
    np.savez(output, **averaged)  # type: ignore[arg-type]  # their keywords are not bool


def train(start: dict[str, Array], seed: int) -> dict[str, Array]:
    """Train from `start` for a few epochs; return the weights by ONNX name."""
    sys.path.insert(0, str(MODELS))
    from make_digits_cnn import build_model

    keras.utils.set_random_seed(seed)
    model = build_model()
    weights = {f"{layer.name}/{w.name}": w for layer in model.layers for w in layer.weights}
    for name, weight in weights.items():
        weight.assign(permuted(name, start[name], TO_KERAS))
    optimizer = keras.optimizers.Adam(LEARNING_RATE)
    model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy")
    with np.load(MODELS / "digits_train.npz") as data:
        model.fit(data["image"], data["label"], batch_size=48, epochs=EPOCHS, verbose=0)
    return {name: permuted(name, w.numpy(), TO_ONNX) for name, w in weights.items()}


def permuted(name: str, value: Array, axes: Mapping[str, tuple[int, ...]]) -> Array:
    """Bring a convolution's kernel into the other layout; return other weights as they are."""
    if value.ndim != 4:
        return value
    return value.transpose(axes["depthwise" if "depthwise" in name else "conv"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
