"""Points with intervals on two axes; a group may be a frontier.

Series: ``x``, ``y``: ``{label, unit?, scale?, limits?}`` with scale ``linear`` or ``log``;
``groups``: a list of
``{label, x, y, x_low?, x_high?, y_low?, y_high?, names?, frontier?, theirs?}``.
A frontier joins its best points (less is better on both axes) with steps. ``theirs`` marks values
of a paper: hollow and grey.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from interp.claims import Number
from interp.figures import style
from interp.figures.scales import Limits, place, set_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from interp.records import FigureRecord


def draw(figure: Figure, record: FigureRecord) -> None:
    series = record.series
    axes = figure.subplots()
    groups = series["groups"]
    for name in ("x", "y"):
        set_axis(axes, name, series[name], [v for g in groups for v in g[name]])
    for k, group in enumerate(groups):
        _points(axes, series, group, k)
    axes.set_title(record.title, loc="left")
    style.legend_outside(figure, axes)


def _points(axes: Axes, series: Mapping[str, Any], group: dict[str, Any], k: int) -> None:
    x = [place(series["x"], v, axes.get_xlim()) for v in group["x"]]
    y = [place(series["y"], v, axes.get_ylim()) for v in group["y"]]
    colour = style.GREY if group.get("theirs") else style.colour(k)
    axes.errorbar(
        x, y, xerr=reach(group, "x", x, series["x"], axes.get_xlim()),
        yerr=reach(group, "y", y, series["y"], axes.get_ylim()),
        fmt=style.marker(k), color=colour, label=group["label"], elinewidth=1, capsize=2.5,
        markerfacecolor="white" if group.get("theirs") else colour, zorder=3,
    )  # fmt: skip
    if group.get("frontier"):
        best = frontier(list(zip(x, y, strict=True)))
        axes.step(*zip(*best, strict=True), where="post", color=colour, linewidth=1, alpha=0.6)
    for name, px, py in zip(group.get("names", ()), x, y, strict=False):
        axes.annotate(
            name, (px, py), xytext=(5, 5), textcoords="offset points", fontsize=8, color=style.INK
        )


def reach(
    group: dict[str, Any],
    name: str,
    values: list[Number],
    axis: dict[str, Any],
    limits: Limits,
) -> list[list[Number]] | None:
    """Lengths of the whiskers, from the ends that the series gives; None when it gives none."""
    if f"{name}_low" not in group:
        return None
    ends = [[place(axis, v, limits) for v in group[f"{name}_{side}"]] for side in ("low", "high")]
    return [
        [max(v - low, 0) for v, low in zip(values, ends[0], strict=True)],
        [max(high - v, 0) for v, high in zip(values, ends[1], strict=True)],
    ]


def frontier(points: list[tuple[Number, Number]]) -> list[tuple[Number, Number]]:
    """The points that no other beats on both axes, from left to right."""
    best: list[tuple[Number, Number]] = []
    for x, y in sorted(points):
        if not best or y < best[-1][1]:
            best.append((x, y))
    return best
