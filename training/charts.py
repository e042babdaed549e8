"""Plots of data sets, training runs and evaluations, as PNG files."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

mpl.use("Agg", force=False)

WIDTH, HEIGHT = 7.5, 4.2  # inches
DPI = 200  # a plot shown at 700 px is sharp on a screen of twice as many pixels
LEGEND_COLUMNS = 2  # of curves, whose names may be long
PALETTE = 64  # colours
INK, GRID = "#28282c", "#dcdad4"
COLOURS = ("#e23c26", "#2a6f97", "#7a8c3c", "#b07d2b")
DASHES = ("-", (0, (5, 1)), "-.", (0, (1, 1)))  # lines differ without colours, too
STYLE: dict[str, Any] = {
    "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.grid": True, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11,
    "axes.titlelocation": "left", "font.size": 10, "grid.color": GRID, "legend.frameon": False,
    "text.color": INK, "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip


def bars(
    path: Path, title: str, across: str, up: str, groups: Mapping[str, Mapping[str, int]]
) -> None:
    """Draw stacked bars in a colour per group.

    `groups` maps the name of a group to its count for each bar. All groups have the same bars.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _figure(title, across, up)
        names = list(next(iter(groups.values())))
        below = np.zeros(len(names))
        for (group, counts), colour in zip(groups.items(), COLOURS, strict=False):
            heights = np.array([counts[name] for name in names])
            axes.bar(names, heights, bottom=below, color=colour, label=group, width=0.8)
            below += heights
        axes.grid(axis="x", visible=False)
        if len(groups) > 1:
            _legend(figure, len(groups))
        _save(figure, path)


def lines(
    path: Path,
    title: str,
    across: str,
    up: str,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    limits: tuple[float, float | None] | None = None,
    width: tuple[float, float] | None = None,
    logarithmic: bool = False,
    marks: Mapping[str, float] | None = None,
    dots: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Draw curves of x and y, with `limits` of the y axis and those of the x axis, `width`.

    `marks` are vertical lines. `dots` are points, in the colours of the curves in their order.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _figure(title, across, up)
        for (name, (x, y)), colour, dashes in zip(curves.items(), COLOURS, DASHES, strict=False):
            axes.plot(x, y, color=colour, label=name, linewidth=1.8, linestyle=dashes)
        for (name, dot), colour in zip((dots or {}).items(), COLOURS, strict=False):
            axes.plot(*dot, "o", color=colour, label=name, markersize=6)
        for name, place in (marks or {}).items():
            axes.axvline(place, color=INK, linewidth=1, linestyle=":", label=name)
        if limits:
            axes.set_ylim(*limits)
        if width:
            axes.set_xlim(*width)
        if logarithmic:
            axes.set_xscale("log")
        if len(curves) + len(marks or {}) + len(dots or {}) > 1:
            _legend(figure, LEGEND_COLUMNS)
        _save(figure, path)


def _legend(figure: Figure, columns: int) -> None:
    """Add the legend below the axes, where it covers no curve."""
    figure.legend(loc="outside lower center", ncols=columns)


def _save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG with a palette, which has a third of the bytes."""
    drawn = io.BytesIO()
    figure.savefig(drawn)
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(PALETTE).save(path, optimize=True)


def _figure(title: str, across: str, up: str) -> tuple[Any, Any]:
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    return figure, axes
