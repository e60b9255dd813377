"""What arrays have to be for a model's inputs: cast where nothing is lost, else refused."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

from syncbn_convert.errors import ModelFileError

Array = npt.NDArray[Any]

_DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(bfloat16)": ml_dtypes.bfloat16,
    "tensor(bool)": np.bool_,
    **{f"tensor({name})": np.dtype(name) for name in ("int8", "int16", "int32", "int64")},
    **{f"tensor({name})": np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64")},
}
_MOST_AXES = 6
"""Of arrays for which an order of axes is looked for that fits."""


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """What a model takes for one input.

    Attributes:
        name: Name of the input.
        dtype: Element type; None where any will do.
        shape: Sizes, None where any will do; None where the rank is not known.
    """

    name: str
    dtype: np.dtype[Any] | None = None
    shape: tuple[int | None, ...] | None = None

    def check(self, shape: Sequence[int], dtype: np.dtype[Any], origin: str) -> None:
        """Refuse an array of this shape and type, before any of it is read.

        Raises:
            ModelFileError: naming file, array, and what the model takes.
        """
        if dtype.kind not in "biufV" or (dtype.kind == "V" and dtype != ml_dtypes.bfloat16):
            raise ModelFileError(
                f"{origin}: '{self.name}' holds {dtype}, no numbers; save an array of numbers"
            )
        if self.dtype is not None and not _can_cast(dtype, self.dtype):
            raise ModelFileError(
                f"{origin}: '{self.name}' is {dtype}, the model takes {self.dtype}; save it as that"
            )
        if self.shape is not None and not _fits(shape, self.shape):
            raise ModelFileError(
                f"{origin}: '{self.name}' has shape {list(shape)}, the model takes "
                f"{_shown(self.shape)}; {self._cure(shape)}"
            )

    def fit(self, array: Array, origin: str) -> Array:
        """Return an array in the element type that the model takes.

        Raises:
            ModelFileError: if it does not fit, or a number is beyond the type.
        """
        self.check(array.shape, array.dtype, origin)
        if self.dtype is None or array.dtype == self.dtype:
            return array
        with np.errstate(over="ignore"):
            cast = array.astype(self.dtype)
        if not _same_numbers(array, cast):
            raise ModelFileError(
                f"{origin}: '{self.name}' is {array.dtype} and holds numbers beyond {self.dtype}, "
                "which the model takes; scale them"
            )
        return cast

    def remark(self, dtype: np.dtype[Any]) -> str | None:
        """Return what a user should know of how an array is taken; None for nothing."""
        if self.dtype is None or dtype.kind not in "iu" or self.dtype.kind not in "fV":
            return None
        return f"'{self.name}' is {dtype} and taken as {self.dtype}, its numbers as they stand"

    def _cure(self, shape: Sequence[int]) -> str:
        assert self.shape is not None
        rest = range(1, len(shape))
        orders = itertools.permutations(rest) if len(shape) <= _MOST_AXES else ()
        for order in orders:
            if _fits([shape[0], *(shape[at] for at in order)], self.shape):
                axes = ", ".join(map(str, (0, *order)))
                return f"save {self.name}.transpose({axes})"
        wanted = [size for size in self.shape[1:] if size != 1]
        if [size for size in shape[1:] if size != 1] == wanted and None not in wanted:
            return f"save {self.name}.reshape({', '.join(map(str, (-1, *self.shape[1:])))})"
        return "give it that shape"


def specs_of(session: onnxruntime.InferenceSession, names: Iterable[str]) -> list[InputSpec]:
    """Return what a session takes for the inputs named, in that order."""
    found = {value.name: value for value in session.get_inputs()}
    specs = []
    for name in names:
        value = found.get(name)
        if value is None:
            specs.append(InputSpec(name))
            continue
        dtype = _DTYPES.get(value.type)
        sizes = tuple(size if isinstance(size, int) and size >= 0 else None for size in value.shape)
        specs.append(
            InputSpec(name, None if dtype is None else np.dtype(dtype), (None, *sizes[1:]))
        )
    return specs


def specs_of_graph(model: ir.Model, leaving: Collection[str] = ()) -> list[InputSpec]:
    """Return what a model takes for the inputs that are no initializers.

    Args:
        model: The model.
        leaving: Inputs to leave out.
    """
    specs = []
    for value in model.graph.inputs:
        if value.is_initializer() or value.name in leaving:
            continue
        dtype = None if value.dtype is None else value.dtype.numpy()
        sizes = None if value.shape is None else [_known(size) for size in value.shape]
        shape = None if sizes is None else (None, *sizes[1:])
        specs.append(
            InputSpec(str(value.name), dtype if dtype in _DTYPES.values() else None, shape)
        )
    return specs


def _known(size: object) -> int | None:
    return size if isinstance(size, int) and size >= 0 else None


def fit_all(
    specs: Sequence[InputSpec], arrays: Mapping[str, Array], origin: str
) -> dict[str, Array]:
    """Return the arrays of all inputs, each as the model takes it.

    Raises:
        ModelFileError: if one is missing, does not fit, or they differ in their first axis.
    """
    check_lengths({spec.name: arrays.get(spec.name) for spec in specs}, origin, arrays)
    return {spec.name: spec.fit(arrays[spec.name], origin) for spec in specs}


def check_lengths(arrays: Mapping[str, Any], origin: str, held: Iterable[str]) -> None:
    """Refuse arrays of which one is missing, or that differ in their number of samples."""
    missing = [name for name, array in arrays.items() if array is None]
    if missing:
        raise ModelFileError(
            f"{origin}: has no array '{missing[0]}' for that input of the model; it holds "
            f"{', '.join(map(str, held)) or 'none'}"
        )
    lengths = {name: array.shape[0] if array.shape else -1 for name, array in arrays.items()}
    if len(set(lengths.values())) > 1 or -1 in lengths.values():
        raise ModelFileError(
            f"{origin}: the arrays differ in their number of samples: {lengths}; the first axis "
            "must be the same"
        )


def _can_cast(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Whether numbers of one type are ever taken as another."""
    if given == wanted:
        return True
    if wanted.kind in "fV":
        return given.kind in "biufV"
    if wanted.kind in "iu":
        return given.kind in "biu"
    return False


def _same_numbers(array: Array, cast: Array) -> bool:
    """Whether a cast changed nothing but the rounding of fractions."""
    if cast.dtype.kind in "fV" and array.dtype.kind in "fV":
        return bool((np.isfinite(cast) | ~np.isfinite(array)).all())
    return bool((cast.astype(array.dtype) == array).all())


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(
        size is None or own == size for own, size in zip(shape, wanted, strict=True)
    )


def _shown(shape: Sequence[int | None]) -> str:
    named = ["N" if not at and size is None else size for at, size in enumerate(shape)]
    return "[" + ", ".join("?" if size is None else str(size) for size in named) + "]"
