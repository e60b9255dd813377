"""The pictures of a page: SVG whose colours are the page's own, in light and in dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from syncbn_convert.errors import UsageError
from syncbn_convert.page.model_facts import LayerStatistics
from syncbn_convert.reports import ERROR_BOUNDS, OutputDifference

_COLORS = {"ink": "#010203", "grid": "#040506", "before": "#070809", "after": "#0a0b0c"}
"""Stand for the variables of the page's style sheet; no picture has these colours otherwise."""
_WIDTH, _HEIGHT = 5.2, 2.9  # inches; a phone shows letters of 9 points at 9 pixels
_LEAST, _MIDDLE, _MOST = 5, 50, 95
_FEW_POINTS = 30

Layers = Mapping[str, LayerStatistics]
Points = tuple[Sequence[float], Sequence[float]]


def require_matplotlib() -> None:
    """Refuse a page that cannot have its pictures.

    Raises:
        UsageError: if matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "--report needs matplotlib; install it with: pip install 'syncbn-convert[report]'"
        ) from error


def statistics_by_layer(before: Layers, after: Layers, what: str) -> str:
    """Return the range of the moving `mean` or `variance` of each layer, before and after."""
    names = list(dict.fromkeys([*before, *after]))
    places = {name: place for place, name in enumerate(names, start=1)}

    def draw(axes: Any) -> None:
        for kind, layers, shift in (("before", before, -0.12), ("after", after, 0.12)):
            if not layers:
                continue
            values = [_of(layers[name], what) for name in layers]
            ends = np.array([np.percentile(v, (_LEAST, _MIDDLE, _MOST)) for v in values])
            x = np.array([places[name] for name in layers]) + shift
            color = _COLORS[kind]
            axes.vlines(x, ends[:, 0], ends[:, 2], color=color, alpha=0.5, linewidth=2)
            axes.plot(x, ends[:, 1], "o", markersize=2.5, color=color, label=kind)
        axes.set_xlabel("normalization in graph order; median, 5 to 95 % of the channels")
        axes.set_title(f"moving {what}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _scale(axes, what, [_of(layer, what) for layer in (*before.values(), *after.values())])
        _legend(axes)

    return _svg(draw, f"moving {what} of {len(names)} layers")


def statistics_by_channel(before: LayerStatistics, after: LayerStatistics, what: str) -> str:
    """Return the moving `mean` or `variance` of each channel of one layer, before and after."""

    def draw(axes: Any) -> None:
        channels = np.arange(before.mean.size)
        for kind, layer in (("before", before), ("after", after)):
            style = {"color": _COLORS[kind], "label": kind, "markersize": 3}
            axes.plot(channels, _of(layer, what), "o", alpha=0.8, **style)
        axes.set_xlabel("channel")
        axes.set_title(f"moving {what}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _scale(axes, what, [_of(before, what), _of(after, what)])
        _legend(axes)

    return _svg(draw, f"moving {what} by channel")


def error_histogram(output: OutputDifference) -> str:
    """Return how many elements of an output have which relative error."""
    equal, *counts = output.histogram

    def draw(axes: Any) -> None:
        places = np.arange(len(counts))
        axes.bar([-2], [equal], width=0.9, color=_COLORS["before"])
        axes.bar(places, counts, width=0.9, color=_COLORS["after"])
        decades = range(0, len(ERROR_BOUNDS), 4)
        axes.set_xticks(
            [-2, *(place + 0.5 for place in decades)],
            ["equal", *(f"{ERROR_BOUNDS[place]:.0e}".replace("e-0", "e-") for place in decades)],
        )
        if output.tolerance > 0:
            place = np.interp(
                np.log10(output.tolerance), np.log10(ERROR_BOUNDS), np.arange(len(ERROR_BOUNDS))
            )
            axes.axvline(place + 0.5, color=_COLORS["ink"], linewidth=1, linestyle="--")
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("error relative to the largest magnitude; dashed: tolerance")
        axes.set_title("number of elements")

    return _svg(draw, f"errors of output {output.name}")


def curves(title: str, lines: Mapping[str, Points], x_label: str) -> str:
    """Return at most two curves, each a line through its points."""
    kinds = ("before", "after")

    def draw(axes: Any) -> None:
        for (name, (x, y)), kind in zip(lines.items(), kinds[-len(lines) :], strict=True):
            few = len(x) <= _FEW_POINTS
            style = {"marker": "o" if few else None, "markersize": 3, "linewidth": 1.2}
            axes.plot(x, y, color=_COLORS[kind], label=name, **style)
        axes.set_xlabel(x_label)
        axes.set_title(title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _legend(axes)

    return _svg(draw, f"{title} by {x_label}")


def _legend(axes: Any) -> None:
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0.2,
        ncols=2,
        frameon=False,
        labelcolor=_COLORS["ink"],
    )


def _of(layer: LayerStatistics, what: str) -> Any:
    return layer.mean if what == "mean" else layer.variance


def _scale(axes: Any, what: str, values: Sequence[Any]) -> None:
    if what == "variance" and min((float(v.min()) for v in values if v.size), default=0.0) > 0:
        axes.set_yscale("log")


def _svg(draw: Callable[[Any], None], label: str) -> str:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink, grid = _COLORS["ink"], _COLORS["grid"]
    colors = dict.fromkeys(
        ["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"], ink
    )
    style = {
        **colors,
        "grid.color": grid,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": "medium",
        "axes.titlelocation": "left",
        "font.size": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": label,
    }
    with rc_context(style):  # type: ignore[arg-type]
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        figure.patch.set_alpha(0.0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0.0)
        draw(axes)
        target = io.StringIO()
        canvas = FigureCanvasSVG(figure)
        canvas.print_svg(target, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    return _inline(target.getvalue(), label)


def _inline(svg: str, label: str) -> str:
    """Return the element alone, as wide as its place, its names apart from those of others."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px; font-family: inherit", svg)
    svg = re.sub(r'\bid="(figure_|patch_|axes_|matplotlib|xtick|ytick|text|line)[^"]*"', "", svg)
    for name, color in _COLORS.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
