"""Histograms of several groups over each other: filled steps, so that all of them stay visible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp.figures import style
from interp.figures.lines import draw_marks
from interp.figures.scales import set_axis
from interp.series import Axis, Histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DASHES = ("-", "--", "-.", ":")


def plot(axes: Axes, series: Histogram, order: Sequence[str] = ()) -> None:
    set_axis(axes, "x", series.x, series.edges)
    axes.set_ylabel(style.axis_label(Axis("share", "%") if series.share else Axis("count")))
    for k, group in style.in_turn(series.groups, order):
        total = sum(group.counts)
        heights = [100 * c / total for c in group.counts] if series.share else group.counts
        axes.stairs(heights, series.edges, fill=True, color=style.colour(k), alpha=0.25)
        axes.stairs(
            heights, series.edges, color=style.colour(k), linewidth=1.6,
            linestyle=DASHES[k % len(DASHES)], label=f"{group.label} (n = {total})",
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    draw_marks(axes, series.marks)
