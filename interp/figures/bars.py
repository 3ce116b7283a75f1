"""Bars with intervals, side by side in groups; a paper's own bars are hollow and grey."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp.figures import style
from interp.figures.lines import draw_marks
from interp.figures.scales import set_axis
from interp.series import BarGroup, Bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 0.8
"""Of the distance between two categories: all bars of one category together."""


def plot(axes: Axes, series: Bars, order: Sequence[str] = ()) -> None:
    ends = (g.values + (g.low or ()) + (g.high or ()) for g in series.groups)
    set_axis(axes, "y", series.y, [v for values in ends for v in values])
    for k, group in style.in_turn(series.groups, order):
        _bars(axes, group, k, WIDTH / len(series.groups), len(series.groups))
    if series.y.scale == "linear":
        axes.axhline(0, color=style.INK, linewidth=0.8)
    style.name_categories(axes, series.x)
    draw_marks(axes, series.marks)


def _bars(axes: Axes, group: BarGroup, k: int, width: float, n: int) -> None:
    known = [(i, v) for i, v in enumerate(group.values) if v is not None]
    places = [i + (k - (n - 1) / 2) * width for i, _ in known]
    colour = style.GREY if group.theirs else style.colour(k)
    axes.bar(
        places, [v for _, v in known], 0.92 * width, label=group.label, edgecolor=colour,
        color="white" if group.theirs else colour, linewidth=1.2 if group.theirs else 0,
    )  # fmt: skip
    if group.low is None or group.high is None:
        return
    for x, (i, value) in zip(places, known, strict=True):
        low, high = group.low[i], group.high[i]
        if low is not None and high is not None:
            reach = [[max(value - low, 0)], [max(high - value, 0)]]
            axes.errorbar(x, value, reach, fmt="none", ecolor=style.INK, elinewidth=1, capsize=2.5)
