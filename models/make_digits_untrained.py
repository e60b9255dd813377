"""Write `digits_untrained.onnx`: `digits_cnn.onnx` with random weights, as before any training.

Kernels are normally distributed with variance 2 / fan-in, gamma and the moving variance are 1, all
else is 0. How to run, in any order of installations::

    python models/make_digits_untrained.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

FOLDER = Path(__file__).parent
SEED = 0


def initial(name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Return the first value of an initializer."""
    if name.endswith("kernel"):
        fan_in = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
        return random.normal(scale=np.sqrt(2 / fan_in), size=shape)
    ones = name.endswith(("gamma", "moving_variance"))
    return np.ones(shape) if ones else np.zeros(shape)


def untrained(model: onnx.ModelProto, seed: int = SEED) -> onnx.ModelProto:
    """Return `model` with random weights; constants that are no weights stay."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    random = np.random.default_rng(seed)
    for tensor in sorted(result.graph.initializer, key=lambda tensor: str(tensor.name)):
        if tensor.data_type == onnx.TensorProto.FLOAT:
            value = initial(tensor.name, tuple(tensor.dims), random).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return result


if __name__ == "__main__":
    onnx.save(untrained(onnx.load(FOLDER / "digits_cnn.onnx")), FOLDER / "digits_untrained.onnx")
