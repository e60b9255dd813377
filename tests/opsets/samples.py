"""One-node models of every opset in which an operator is spelled alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh

Array = npt.NDArray[Any]
_FIRST_WITHOUT_LISTED_INITIALIZERS = 9
NEWEST = 24
"""The last opset that ONNX Runtime's released kernels take."""

_RANDOM = np.random.default_rng(7)


def floats(*shape: int, dtype: Any = np.float32) -> Array:
    """Normal random numbers."""
    return _RANDOM.normal(size=shape).astype(dtype)


X = floats(2, 3, 4, 5)
SQUARE = floats(2, 3, 4, 3)
POSITIVE = np.abs(X) + 0.1
INTEGERS = np.arange(24, dtype=np.int64).reshape(2, 3, 4)
BOOLEANS = X > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A node with its inputs, for the opsets from `first` to `last`.

    Attributes:
        op_type: Its operator.
        first: Lowest opset that spells it so.
        last: Highest opset that spells it so.
        inputs: Arrays, those from `fed` on as initializers; None is an empty input.
        attributes: Attributes.
        outputs: Number of outputs.
        fed: Number of inputs that are fed.
        expected: What it computes, where ONNX Runtime does not run it.
    """

    op_type: str
    first: int
    last: int
    inputs: Sequence[Array | None]
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    outputs: int = 1
    fed: int = 1
    expected: Callable[..., Array] | None = None

    def __str__(self) -> str:
        shown = ",".join(f"{name}={value}" for name, value in self.attributes.items())
        shapes = ",".join("-" if a is None else f"{a.dtype}{list(a.shape)}" for a in self.inputs)
        return f"{self.op_type}-{self.first}..{self.last}<{shown}>({shapes})".replace(" ", "")

    def model(self, opset: int, *, named: bool = False) -> onnx.ModelProto:
        """Return the model, the sizes of what is fed given or only named."""
        names = [f"i{at}" if array is not None else "" for at, array in enumerate(self.inputs)]
        outputs = [f"y{at}" for at in range(self.outputs)]
        node = oh.make_node(self.op_type, names, outputs, name="node", **self.attributes)
        pairs = [(n, a) for n, a in zip(names, self.inputs, strict=True) if a is not None]
        infos = [
            _info(name, array, named and at < self.fed) for at, (name, array) in enumerate(pairs)
        ]
        graph = oh.make_graph(
            [node],
            "sample",
            infos if opset < _FIRST_WITHOUT_LISTED_INITIALIZERS else infos[: self.fed],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [onh.from_array(array, name) for name, array in pairs[self.fed :]],
        )
        return oh.make_model(
            graph,
            opset_imports=[oh.make_opsetid("", opset)],
            ir_version=3 if opset < _FIRST_WITHOUT_LISTED_INITIALIZERS else 8,
        )

    def feeds(self) -> dict[str, Array]:
        """Return what is fed."""
        fed = enumerate(self.inputs[: self.fed])
        return {f"i{at}": array for at, array in fed if array is not None}


def _info(name: str, array: Array, named: bool) -> onnx.ValueInfoProto:
    shape = [f"{name}_{at}" for at in range(array.ndim)] if named else array.shape
    return oh.make_tensor_value_info(name, oh.np_dtype_to_tensor_dtype(array.dtype), shape)


def sample(op_type: str, first: int, last: int, *inputs: Array | None, **more: Any) -> Sample:
    """Return a sample of an operator from opset `first` to `last`."""
    keys = ("outputs", "fed", "expected")
    given = {key: more.pop(key) for key in keys if key in more}
    return Sample(op_type=op_type, first=first, last=last, inputs=inputs, attributes=more, **given)
