"""Networks of Keras for a machine without TensorFlow: their graphs, with weights left out.

    python benchmarks/gpu/skeletons.py models.npz      here, where Keras is

`filled` gives a network weights again, drawn with a seed, so that a step costs what it would cost.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

NAMES = {"mobilenet_v2": "MobileNetV2", "inception_v3": "InceptionV3"}
SIZE = 224
_SMALL = 4096
"""Elements of what is kept."""


def main(path: Path) -> None:
    import keras

    import syncbn_convert

    found: dict[str, Any] = {}
    for name, kind in NAMES.items():
        network = getattr(keras.applications, kind)(weights=None, input_shape=(SIZE, SIZE, 3))
        file = path.with_suffix(f".{name}.keras")
        network.save(file)
        form = syncbn_convert.convert(file, verify=False)
        file.unlink()
        proto = syncbn_convert.files.model_file.to_proto(form)
        found[name] = np.frombuffer(skeleton(proto).SerializeToString(), np.uint8)
    np.savez_compressed(path, **found)


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model without the values of its large floating-point initializers."""
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) > _SMALL:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    return model


def filled(path: Path, name: str) -> onnx.ModelProto:
    """Return a network with weights drawn again."""
    with np.load(path) as archive:
        model = onnx.ModelProto()
        model.ParseFromString(archive[name].tobytes())
    random = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        shape = tuple(tensor.dims)
        empty = not (tensor.raw_data or tensor.float_data)
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(shape) > _SMALL and empty:
            spread = np.sqrt(2 / max(np.prod(shape[1:]), 1))
            values = (random.standard_normal(shape) * spread).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


if __name__ == "__main__":
    main(Path(sys.argv[1]))
