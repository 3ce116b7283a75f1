"""Several plots on one card: a grid of axes with one legend, or of parts where a plot needs more."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

from interp.figures import style
from interp.figures.card import draw_on, renderer
from interp.figures.card import size as size_of
from interp.series import Panel, SmallMultiples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

MOST_COLUMNS = 3
PLOT = (2.9, 2.45)
"""Inches of a plot of one pair of axes, its labels included."""
FRAME = 0.85
"""Inches of title and footer."""
LONGEST = 32
"""Characters of a line of an axis label: a longer one would reach into the next plot."""
LINE = 0.17
"""Inches of a further line of an axis label."""
LETTER, KEY = 0.068, 0.5
"""Inches of a letter of the legend, and of the sign before its text."""


def size(series: SmallMultiples) -> tuple[float, float]:
    rows, columns = _grid(series)
    if series.on_plots:
        labels = {label for panel in series.panels for label in _labels(panel)}
        legend = KEY + LETTER * max(map(len, labels)) if labels else 0.0
        return max(style.SIZE[0], PLOT[0] * columns + legend), FRAME + PLOT[1] * rows
    sizes = [size_of(panel.series) for panel in series.panels]
    lines = [sizes[i : i + columns] for i in range(0, len(sizes), columns)]
    width = max(sum(w for w, _ in line) for line in lines)
    return width, FRAME + sum(max(h for _, h in line) for line in lines)


def draw(figure: FigureBase, series: SmallMultiples, title: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
    if series.on_plots:
        _plots(figure, series)
        return
    rows, columns = _grid(series)
    sizes = [size_of(panel.series) for panel in series.panels]
    heights = [max(h for _, h in sizes[i : i + columns]) for i in range(0, len(sizes), columns)]
    parts = figure.subfigures(rows, columns, squeeze=False, height_ratios=heights).flat
    for part, panel in zip(parts, series.panels, strict=False):
        draw_on(part, panel.series, panel.title)


def _grid(series: SmallMultiples) -> tuple[int, int]:
    most = MOST_COLUMNS if series.on_plots else 1
    columns = series.columns or min(most, len(series.panels))
    return math.ceil(len(series.panels) / columns), columns


def _plots(figure: FigureBase, series: SmallMultiples) -> None:
    rows, columns = _grid(series)
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = list(grid.flat)
    drawn = axes[: len(series.panels)]
    orders: dict[str, list[str]] = {}
    for panel in series.panels:
        known = orders.setdefault(panel.series.kind, [])
        known += [label for label in _named(panel) if label not in known]
    for each, panel in zip(drawn, series.panels, strict=True):
        renderer(panel.series).plot(each, panel.series, orders[panel.series.kind])
        each.set_title("\n".join([panel.title, *_notes(panel)]), loc="left", fontsize=9)
    for name in series.share:
        _share(drawn, name)
    for spare in axes[len(drawn) :]:
        spare.remove()
    _drop_repeated_labels(drawn, columns)
    _break_labels(figure, drawn, (columns, rows))
    _legend(figure, drawn, series)


def _break_labels(figure: FigureBase, drawn: list[Axes], grid: tuple[int, int]) -> None:
    """Break long axis labels between words, and give the figure the room that their lines take."""
    lines = {"x": 1, "y": 1}
    for axes in drawn:
        for name in lines:
            label = textwrap.fill(
                getattr(axes, f"get_{name}label")(), LONGEST, break_long_words=False
            )
            getattr(axes, f"set_{name}label")(label)
            lines[name] = max(lines[name], label.count("\n") + 1)
    width, height = figure.figure.get_size_inches()
    columns, rows = grid
    figure.figure.set_size_inches(
        width + LINE * columns * (lines["y"] - 1), height + LINE * rows * (lines["x"] - 1)
    )


def _share(drawn: list[Axes], name: str) -> None:
    """Give all plots the widest limits of any."""
    limits = [getattr(axes, f"get_{name}lim")() for axes in drawn]
    for axes in drawn:
        getattr(axes, f"set_{name}lim")(min(low for low, _ in limits), max(h for _, h in limits))


def _drop_repeated_labels(drawn: list[Axes], columns: int) -> None:
    """Name an axis once where its neighbour to the left, or below, has the same name."""
    y, x = ([getattr(axes, f"get_{name}label")() for axes in drawn] for name in "yx")
    for i, axes in enumerate(drawn):
        if i % columns and y[i] == y[i - 1]:
            axes.set_ylabel("")
        if i + columns < len(drawn) and x[i] == x[i + columns]:
            axes.set_xlabel("")


def _legend(figure: FigureBase, drawn: list[Axes], series: SmallMultiples) -> None:
    found: dict[tuple[str, str], Any] = {}
    for axes, panel in zip(drawn, series.panels, strict=True):
        notes = _notes(panel)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if label not in notes:
                found.setdefault((panel.series.kind, label), handle)
    if found:
        labels = [label for _, label in found]
        figure.legend(found.values(), labels, loc="outside right upper", handlelength=1.6)


def _notes(panel: Panel) -> list[str]:
    """What a plot says of its own points: it stands in the title, not in the common legend."""
    notes = getattr(renderer(panel.series), "notes", None)
    return notes(panel.series) if notes else []


def _labels(panel: Panel) -> list[str]:
    """Texts of the legend, up to a few letters."""
    series: Any = panel.series
    return [*_named(panel), *(mark.label for mark in series.marks)]


def _named(panel: Panel) -> list[str]:
    """Labels of what is drawn in colours of its own."""
    series: Any = panel.series
    return [part.label for part in getattr(series, "lines", None) or getattr(series, "groups", ())]
