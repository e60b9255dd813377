"""What the labels of a loss have to be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.errors import ModelFileError
from syncbn_convert.options.training import BINARY_CROSS_ENTROPY, StepOptions

Array = npt.NDArray[Any]

_CHUNK_BYTES = 32 * 2**20


@dataclasses.dataclass(frozen=True)
class Labels:
    """What the labels have to be.

    Attributes:
        name: Name of the array.
        dtype: Element type that the loss takes.
        rank: Number of axes; None if it is not known.
        classes: Number of classes; None if it is not known, or there are none.
        shape: Sizes, None where any will do; None if the rank is not known.
        shares: Whether they go from 0 to 1.
        ignored: Class index that does not count; None for none.
    """

    name: str
    dtype: npt.DTypeLike
    rank: int | None
    classes: int | None
    shape: tuple[int | None, ...] | None = None
    shares: bool = False
    ignored: int | None = None

    def checked(self, samples: Mapping[str, Array], origin: str) -> dict[str, Array]:
        """Return samples with labels of the right type.

        Raises:
            ModelFileError: if the labels are not what the loss takes.
        """
        labels = samples[self.name]
        self.check(labels, origin)
        return {**samples, self.name: labels.astype(self.dtype, copy=False)}

    def check_all(self, labels: Any, origin: str) -> None:
        """Refuse labels that the loss does not take, in pieces.

        Raises:
            ModelFileError: saying what they are and what it takes.
        """
        size = labels.shape[0]
        row = max(labels.dtype.itemsize * int(np.prod(labels.shape[1:])), 1)
        count = max(_CHUNK_BYTES // row, 1)
        for start in range(0, size, count):
            self.check(labels[start : start + count], origin)

    def check(self, labels: Array, origin: str) -> None:
        """Refuse labels that the loss does not take.

        Raises:
            ModelFileError: saying what they are and what it takes.
        """
        whole = np.issubdtype(self.dtype, np.integer)
        if labels.dtype.kind not in ("iub" if whole else "iubf"):
            wanted = "class indices, whole numbers" if whole else "numbers"
            raise ModelFileError(
                f"{origin}: labels '{self.name}' are {labels.dtype}, but this loss takes {wanted}; "
                "give those"
            )
        if self.rank is not None and labels.ndim != self.rank:
            raise ModelFileError(
                f"{origin}: labels '{self.name}' have shape {list(labels.shape)}, but this loss "
                f"takes {self.rank} axes; give them another shape"
            )
        self._check_sizes(labels, origin)
        if labels.size:
            self._check_range(labels, whole, origin)

    def _check_sizes(self, labels: Array, origin: str) -> None:
        if self.shape is None or len(self.shape) != labels.ndim:
            return
        for own, wanted in zip(labels.shape[1:], self.shape[1:], strict=True):
            if wanted is not None and own != wanted:
                raise ModelFileError(
                    f"{origin}: labels '{self.name}' have shape {list(labels.shape)}, but this "
                    f"loss takes {['N', *self.shape[1:]]}; give them another shape"
                )

    def _check_range(self, labels: Array, whole: bool, origin: str) -> None:
        if whole:
            counted = labels if self.ignored is None else labels[labels != self.ignored]
            if not counted.size:
                return
            low, high = int(counted.min()), int(counted.max())
            if low < 0 or (self.classes is not None and high >= self.classes):
                raise ModelFileError(
                    f"{origin}: labels '{self.name}' go from {low} to {high}, but the model has "
                    f"{self.classes or 'only nonnegative'} classes; give class indices from 0 up, "
                    "or name the one that does not count with --ignore-index"
                )
            return
        least, most = float(labels.min()), float(labels.max())
        if not (math.isfinite(least) and math.isfinite(most)):
            raise ModelFileError(
                f"{origin}: labels '{self.name}' hold NaN or infinity; give finite numbers"
            )
        if self.shares and not (least >= 0 and most <= 1):
            raise ModelFileError(
                f"{origin}: labels '{self.name}' go from {least:g} to {most:g}, but this loss "
                "takes numbers from 0 to 1; scale them"
            )


def labels_of(gradient: ir.Model, options: StepOptions, classes: int | None) -> Labels | None:
    """Return what the labels have to be by the graph that takes them."""
    name = options.labels
    found = next((value for value in gradient.graph.inputs if value.name == name), None)
    if name is None or found is None:
        return None
    assert found.dtype is not None
    shape = None
    if found.shape is not None:
        shape = tuple(size if isinstance(size, int) else None for size in found.shape)
    rank = None if shape is None else len(shape)
    shares = options.loss == BINARY_CROSS_ENTROPY or options.one_hot
    return Labels(name, found.dtype.numpy(), rank, classes, shape, shares, options.ignore_index)
