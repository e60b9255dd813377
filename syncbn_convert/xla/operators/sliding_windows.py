"""Windows that move over images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from syncbn_convert.xla.translations import Call


@dataclasses.dataclass(frozen=True)
class Window:
    """A window; one entry for each axis of the image.

    Attributes:
        kernel: Elements.
        strides: Steps between windows.
        dilations: Steps between the elements of a window.
        pads: Elements that are added before and after the image.
        sizes: Number of windows.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[tuple[int, int]]
    sizes: list[int]

    @property
    def extents(self) -> list[int]:
        """From the first element of a window to its last."""
        return [(size - 1) * gap + 1 for size, gap in zip(self.kernel, self.dilations, strict=True)]


def window_of(at: Call, sizes: Sequence[int], kernel: Sequence[int]) -> Window:
    """Return the window of a Conv or a pool on an image of these sizes."""
    count = len(sizes)
    strides, dilations = at.ints("strides") or [1] * count, at.ints("dilations") or [1] * count
    given = at.ints("pads") or [0] * (2 * count)
    mode = at.text("auto_pad", "NOTSET")
    pads, windows = [], []
    for axis, size in enumerate(sizes):
        extent, stride = (kernel[axis] - 1) * dilations[axis] + 1, strides[axis]
        pair = (given[axis], given[axis + count]) if mode == "NOTSET" else (0, 0)
        if mode.startswith("SAME"):
            total = max((-(-size // stride) - 1) * stride + extent - size, 0)
            small, large = total // 2, total - total // 2
            pair = (large, small) if mode == "SAME_LOWER" else (small, large)
        steps = _windows(size, pair, extent, stride, ceil=bool(at.integer("ceil_mode", 0)))
        pads.append(pair)
        windows.append(steps)
    return Window(list(kernel), strides, dilations, pads, windows)


def _windows(size: int, pads: tuple[int, int], extent: int, stride: int, *, ceil: bool) -> int:
    """Return how many windows there are; with `ceil` the last may reach beyond the padding."""
    room = size + sum(pads) - extent
    if not ceil:
        return room // stride + 1
    found = -(-room // stride) + 1
    return found - 1 if (found - 1) * stride >= size + pads[0] else found


def with_ceil(window: Window, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return pads with which the last windows of ceil mode lie inside."""
    found = []
    for axis, size in enumerate(sizes):
        low, high = window.pads[axis]
        needed = (window.sizes[axis] - 1) * window.strides[axis] + window.extents[axis]
        found.append((low, max(high, needed - size - low)))
    return found
