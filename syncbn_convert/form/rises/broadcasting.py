"""Operators that got NumPy's broadcasting in opset 7."""

from __future__ import annotations

from syncbn_convert.form.rises import guesses
from syncbn_convert.form.rises.site import Site
from syncbn_convert.form.rises.steps import keep, rule


@rule(*("Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor"), opset=7)
def broadcast(site: Site) -> None:
    """Give the second input the axes of size 1 that put it at the attribute `axis`."""
    wanted, axis = site.pop("broadcast"), site.pop("axis")
    if wanted and axis is not None:
        rank = site.rank(1)
        trailing = -axis - rank if axis < 0 else site.rank(0) - axis - rank
        _append_axes(site, 1, trailing)
    keep(site)


@rule("PRelu", opset=7)
def slope_of_channels(site: Site) -> None:
    """Give a slope [C] the axes of size 1 that put it at axis 1."""
    if site.rank(1) == 1 and not _is_one(site):
        _append_axes(site, 1, site.rank(0) - 2)
    keep(site)


def _is_one(site: Site) -> bool:
    shape = site.input(1).shape
    return shape is not None and shape[0] == 1


@rule("Gemm", opset=7)
def matrix_product(site: Site) -> None:
    """Let C be broadcast, which it is as it was."""
    site.pop("broadcast")
    keep(site)


def _append_axes(site: Site, index: int, count: int) -> None:
    if count > 0:
        value = site.input(index)
        rank = guesses.rank_of(value)
        assert rank is not None
        axes = list(range(rank, rank + count))
        site.set_input(index, site.add("Unsqueeze", value, axes=axes))
