"""Buckets: vectors that hold the gradients of several parameters, one after the other."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

_METADATA_KEY = "syncbn_convert.buckets"


@dataclasses.dataclass(frozen=True)
class Entry:
    """The place of one parameter in a bucket.

    Attributes:
        name: The parameter.
        offset: Its first element.
        shape: Its shape.
    """

    name: str
    offset: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Bucket:
    """One vector.

    Attributes:
        name: The graph output that returns it.
        dtype: Element type, `float32` or `float64`.
        entries: What it holds, in order.
    """

    name: str
    dtype: str
    entries: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return sum(entry.size for entry in self.entries)

    def parts(self, values: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Return views of the vector by parameter."""
        return {
            entry.name: values[entry.offset : entry.offset + entry.size].reshape(entry.shape)
            for entry in self.entries
        }


def put(model: ir.Model, buckets: list[Bucket]) -> None:
    """Keep in the model's metadata what its buckets hold."""
    content = [dataclasses.asdict(bucket) for bucket in buckets]
    model.metadata_props[_METADATA_KEY] = json.dumps(content)


def get(model: ir.Model) -> list[Bucket]:
    """Return the buckets of a model; empty if it has none."""
    return [
        Bucket(
            bucket["name"],
            bucket["dtype"],
            tuple(
                Entry(entry["name"], entry["offset"], tuple(entry["shape"]))
                for entry in bucket["entries"]
            ),
        )
        for bucket in json.loads(model.metadata_props.get(_METADATA_KEY, "[]"))
    ]


def zeros(bucket: Bucket) -> npt.NDArray[Any]:
    """Return a vector for the bucket, filled with zeros."""
    return np.zeros(bucket.size, np.dtype(bucket.dtype))
