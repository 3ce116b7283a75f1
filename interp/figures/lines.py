"""Lines with bands; a paper's own lines are dashed and grey."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp.claims import Number
from interp.figures import style
from interp.figures.scales import place, set_axis
from interp.series import Line, Lines, Mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_MARKERS = 40
MARK_DASHES = (":", "-.", (0, (5, 4)))


def plot(axes: Axes, series: Lines, order: Sequence[str] = ()) -> None:
    set_axis(axes, "x", series.x, series.x.values)
    set_axis(axes, "y", series.y, [v for line in series.lines for v in line.values])
    for k, line in style.in_turn(series.lines, order):
        _line(axes, series, line, k)
    draw_marks(axes, series.marks)


def draw_marks(axes: Axes, marks: Sequence[Mark]) -> None:
    """Straight lines across the axes, told apart by their dashes."""
    for k, mark in enumerate(marks):
        rule = axes.axvline if mark.axis == "x" else axes.axhline
        dash = MARK_DASHES[k % len(MARK_DASHES)]
        rule(mark.at, color=style.INK, linestyle=dash, linewidth=1.2, label=mark.label)


def _line(axes: Axes, series: Lines, line: Line, k: int) -> None:
    x = series.x.values if line.x is None else line.x
    colour = style.GREY if line.theirs else style.colour(k)
    axes.plot(
        x, _placed(axes, series, line.values), "--" if line.theirs else "-", color=colour,
        marker=style.marker(k) if len(x) <= MOST_MARKERS else "", label=line.label,
        markerfacecolor="white" if line.theirs else colour, markersize=4,
    )  # fmt: skip
    if line.low is not None and line.high is not None:
        low, high = (_placed(axes, series, side) for side in (line.low, line.high))
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)


def _placed(axes: Axes, series: Lines, values: Sequence[Number | None]) -> list[Number]:
    limits = axes.get_ylim()
    return [float("nan") if v is None else place(series.y, v, limits) for v in values]
