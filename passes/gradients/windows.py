"""The windows that convolutions and pools slide over an image, and the patches under them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import onnx_ir as ir

from syncbn_convert.passes.gradients.tape import GradientTape

_END = 2**62
_SAME = ("SAME_UPPER", "SAME_LOWER")


@dataclasses.dataclass(frozen=True)
class Window:
    """How a window slides over the spatial axes of an image.

    Attributes:
        kernel: Its size, one number an axis, as all others.
        strides: Steps between two places.
        dilations: Distances between two elements of it.
        pads: Zeros around the image, all begins and then all ends; None: only known at run time.
        lower: Whether pads that are only known then are larger at the begin.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | None
    lower: bool = False

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def size(self) -> int:
        """Number of elements in the window."""
        return math.prod(self.kernel)

    @property
    def extents(self) -> tuple[int, ...]:
        """Length from its first to its last element, both included."""
        return tuple(
            (size - 1) * dilation + 1
            for size, dilation in zip(self.kernel, self.dilations, strict=True)
        )

    @property
    def begins(self) -> tuple[int, ...]:
        """Zeros before the image."""
        assert self.pads is not None
        return self.pads[: self.axes]

    @property
    def ends(self) -> tuple[int, ...]:
        """Zeros behind the image."""
        assert self.pads is not None
        return self.pads[self.axes :]

    @property
    def is_point(self) -> bool:
        """Whether it sees each pixel alone, and all of them."""
        return self.size == 1 and set(self.strides) == {1} and not any(self.pads or (1,))


def window_of(node: ir.Node, image: ir.Value, kernel: Sequence[int]) -> Window:
    """Return the window of a convolution or pool, `auto_pad` resolved as far as sizes are known."""
    count = len(kernel)
    strides = _ints(node, "strides", [1] * count)
    dilations = _ints(node, "dilations", [1] * count)
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    window = Window(tuple(kernel), strides, dilations, (0,) * (2 * count), mode == "SAME_LOWER")
    if mode == "VALID":
        return window
    if mode not in _SAME:
        return dataclasses.replace(window, pads=_ints(node, "pads", [0] * (2 * count)))
    assert image.shape is not None
    totals = [
        _same_total(size, stride, extent)
        for size, stride, extent in zip(image.shape[2:], strides, window.extents, strict=True)
    ]
    known = [total for total in totals if total is not None]
    if len(known) < count:
        return dataclasses.replace(window, pads=None)
    begins = [(total + 1) // 2 if window.lower else total // 2 for total in known]
    ends = [total - begin for total, begin in zip(known, begins, strict=True)]
    return dataclasses.replace(window, pads=(*begins, *ends))


def _same_total(size: int | ir.SymbolicDim, stride: int, extent: int) -> int | None:
    """Return how many zeros the `SAME` modes put around an axis; None if that is not known."""
    if stride == 1:
        return extent - 1
    if not isinstance(size, int):
        return None
    return max((-(-size // stride) - 1) * stride + extent - size, 0)


def pads_value(tape: GradientTape, window: Window, image: ir.Value) -> ir.Value:
    """Return the pads, int64 [2 * axes]."""
    if window.pads is not None:
        return tape.ints(*window.pads)
    size = tape.op("Shape", image, start=2)
    strides = tape.ints(*window.strides)
    steps = tape.op("Sub", size, tape.ints(1))
    last = tape.op("Mul", tape.op("Div", steps, strides), strides)
    covered = tape.op("Add", last, tape.ints(*window.extents))
    total = tape.op("Max", tape.op("Sub", covered, size), tape.ints(0))
    less = tape.op("Div", total, tape.ints(2))
    more = tape.op("Sub", total, less)
    return tape.op("Concat", *((more, less) if window.lower else (less, more)), axis=0)


def pad_image(tape: GradientTape, value: ir.Value, window: Window, image: ir.Value) -> ir.Value:
    """Put the window's zeros around `value`, whose spatial axes are those of `image`."""
    zeros = tape.ints(0, 0)
    if window.pads is None:
        begins, ends = tape.ops(
            "Split", [pads_value(tape, window, image)], 2, axis=0, num_outputs=2
        )
        return tape.op("Pad", value, tape.op("Concat", zeros, begins, zeros, ends, axis=0))
    if not any(window.pads):
        return value
    return tape.op("Pad", value, tape.ints(0, 0, *window.begins, 0, 0, *window.ends))


def patches(tape: GradientTape, padded: ir.Value, window: Window) -> list[ir.Value]:
    """Return what each element of the window sees, each of the size of the window's places.

    Args:
        tape: What nodes are written on.
        padded: An image [.., .., spatial] with its zeros around it.
        window: Its pads are not looked at.
    """
    if window.size == 1 and set(window.strides) == {1}:
        return [padded]
    axes = tape.ints(*range(2, 2 + window.axes))
    steps = tape.ints(*window.strides)
    found = []
    for index in itertools.product(*map(range, window.kernel)):
        starts = [step * dilation for step, dilation in zip(index, window.dilations, strict=True)]
        ends = [
            start + 1 - extent or _END for start, extent in zip(starts, window.extents, strict=True)
        ]
        found.append(tape.op("Slice", padded, tape.ints(*starts), tape.ints(*ends), axes, steps))
    return found


def fit(tape: GradientTape, value: ir.Value, begins: ir.Value | None, image: ir.Value) -> ir.Value:
    """Cut `begins` off [N, C, spatial], and cut or fill its end with zeros to the size of `image`.

    Args:
        tape: What nodes are written on.
        value: What has places from `-begins` on.
        begins: int64 [axes]; None cuts nothing.
        image: A forward value [N, C, spatial].
    """
    missing = tape.op("Sub", tape.op("Shape", image, start=2), tape.op("Shape", value, start=2))
    zeros = tape.ints(0, 0)
    if begins is None:
        before = tape.ints(*[0] * (tape.rank(image) - 2))
        return tape.op("Pad", value, tape.op("Concat", zeros, before, zeros, missing, axis=0))
    behind = tape.op("Add", missing, begins)
    before = tape.op("Neg", begins)
    return tape.op("Pad", value, tape.op("Concat", zeros, before, zeros, behind, axis=0))


def _ints(node: ir.Node, name: str, default: list[int]) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return tuple(default if attribute is None else attribute.as_ints())
