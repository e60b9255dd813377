"""The windows that convolutions and pools slide over an image, and the patches under them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import onnx_ir as ir

from syncbn_convert.passes.gradients.gradient_tape import GradientTape

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

    def covered(self, places: Sequence[int]) -> tuple[int, ...]:
        """Return the length that windows at so many places cover, by axis."""
        return tuple(
            (count - 1) * stride + extent
            for count, stride, extent in zip(places, self.strides, self.extents, strict=True)
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
    window = explicit_window(node, kernel)
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode not in _SAME:
        return window
    assert image.shape is not None
    totals = [
        _same_total(size, stride, extent)
        for size, stride, extent in zip(
            image.shape[2:], window.strides, window.extents, strict=True
        )
    ]
    known = [total for total in totals if total is not None]
    lower = mode == "SAME_LOWER"
    if len(known) < window.axes:
        return dataclasses.replace(window, pads=None, lower=lower)
    begins, ends = split_evenly(known, lower)
    return dataclasses.replace(window, pads=(*begins, *ends))


def explicit_window(node: ir.Node, kernel: Sequence[int]) -> Window:
    """Return the window that the attributes other than `auto_pad` describe."""
    count = len(kernel)
    ones = [1] * count
    return Window(
        kernel=tuple(kernel),
        strides=ints(node, "strides", ones),
        dilations=ints(node, "dilations", ones),
        pads=ints(node, "pads", [0] * (2 * count)),
    )


def split_evenly(totals: Sequence[int], lower: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split what is put around each axis; `lower` puts the larger half at the begin."""
    begins = tuple((total + 1) // 2 if lower else total // 2 for total in totals)
    return begins, tuple(total - begin for total, begin in zip(totals, begins, strict=True))


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


def crop(
    tape: GradientTape,
    window: Window,
    full: ir.Value,
    image: ir.Value,
    covered: Sequence[int] | None,
) -> ir.Value:
    """Cut the places around the image off, and add zeros for those at its end that no window sees.

    Args:
        tape: What nodes are written on.
        window: Its pads are cut off.
        full: [.., .., spatial], from the first place in the pads on.
        image: A forward value [N, C, spatial].
        covered: Spatial sizes of `full`, if they are known.
    """
    zeros = tape.ints(0, 0)
    size = spatial_sizes(image)
    if size is not None and covered is not None and window.pads is not None:
        before = [-begin for begin in window.begins]
        behind = [
            length - number + begin
            for length, number, begin in zip(size, covered, window.begins, strict=True)
        ]
        if not any(before) and not any(behind):
            return full
        return tape.op("Pad", full, tape.ints(0, 0, *before, 0, 0, *behind))
    pads = pads_value(tape, window, image)
    begins = tape.op("Slice", pads, tape.ints(0), tape.ints(window.axes))
    missing = tape.op("Sub", tape.op("Shape", image, start=2), tape.op("Shape", full, start=2))
    ends = tape.op("Add", missing, begins)
    return tape.op(
        "Pad", full, tape.op("Concat", zeros, tape.op("Neg", begins), zeros, ends, axis=0)
    )


def spatial_sizes(value: ir.Value) -> list[int] | None:
    """Return the sizes of a forward value's spatial axes, or None where one is not known."""
    assert value.shape is not None
    sizes = [size for size in value.shape[2:] if isinstance(size, int)]
    return sizes if len(sizes) == len(value.shape) - 2 else None


def ints(node: ir.Node, name: str, default: list[int]) -> tuple[int, ...]:
    """Return an attribute of integers."""
    attribute = node.attributes.get(name)
    return tuple(default if attribute is None else attribute.as_ints())
