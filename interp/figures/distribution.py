"""Every value of several samples, in columns, with the box of their quartiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp.figures import style
from interp.figures.lines import draw_marks
from interp.figures.scales import place, set_axis
from interp.series import Distribution, Names, Sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 0.56
"""Of the distance between two samples: the spread of points, which is also the width of the box."""
GOLDEN = 0.618033988749895
"""Multiples of it modulo 1 spread points evenly, the same way every time."""


def plot(axes: Axes, series: Distribution, order: Sequence[str] = ()) -> None:
    set_axis(axes, "y", series.y, [v for group in series.groups for v in group.values])
    for k, group in style.in_turn(series.groups, order):
        _sample(axes, series, group, k)
    names = tuple(f"{group.label}\nn = {len(group.values)}" for group in series.groups)
    style.name_categories(axes, Names("", names))
    axes.set_xlim(-0.6, len(series.groups) - 0.4)
    draw_marks(axes, series.marks)


def _sample(axes: Axes, series: Distribution, group: Sample, k: int) -> None:
    from matplotlib.patches import Rectangle

    limits = axes.get_ylim()
    colour = style.GREY if group.theirs else style.colour(k)
    values = [place(series.y, v, limits) for v in group.values]
    x = [k + WIDTH * ((i * GOLDEN + 0.5) % 1 - 0.5) for i in range(len(values))]
    axes.plot(
        x, values, style.marker(k), color=colour, linestyle="none", markersize=4, alpha=0.6,
        markerfacecolor="white" if group.theirs else colour, markeredgewidth=0.8, zorder=5,
    )  # fmt: skip
    low, median, high = (place(series.y, v, limits) for v in group.quartiles)
    box = (k - WIDTH / 2, low)
    axes.add_patch(
        Rectangle(box, WIDTH, high - low, fill=False, edgecolor=style.INK, linewidth=1, zorder=3)
    )
    axes.plot([box[0], box[0] + WIDTH], [median] * 2, color=style.INK, linewidth=2.2, zorder=4)
