"""Points with intervals on two axes, their frontier, and least-squares lines with r."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp.claims import Number
from interp.figures import style
from interp.figures.lines import draw_marks
from interp.figures.scales import Limits, place, set_axis
from interp.series import Axis, Correlation, Group, Scatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot(axes: Axes, series: Scatter, order: Sequence[str] = ()) -> None:
    for name, axis in (("x", series.x), ("y", series.y)):
        set_axis(axes, name, axis, [v for g in series.groups for v in getattr(g, name)])
    for k, group in style.in_turn(series.groups, order):
        _points(axes, series, group, k)
    turns = {group.label: k for k, group in style.in_turn(series.groups, order)}
    for label, fit in series.fits.items():
        colour = style.colour(turns[label]) if label else style.INK
        _fit(axes, series, label, fit, colour)
    draw_marks(axes, series.marks)


def notes(series: Scatter) -> list[str]:
    """r of every line that is drawn, in words."""
    return [_note(label, fit) for label, fit in series.fits.items()]


def _note(label: str, fit: Correlation) -> str:
    interval = "" if fit.low is None else f" [{fit.low:.2f}, {fit.high:.2f}]"
    text = f"r = {fit.r:.2f}{interval}, n = {fit.n}".replace("-", "−")
    return f"{label}: {text}" if label else text


def _fit(axes: Axes, series: Scatter, label: str, fit: Correlation, colour: str) -> None:
    chosen = [g for g in series.measured if g.label == label] if label else series.measured
    x = [p[0] for group in chosen for p in group.points]
    ends = [min(x), max(x)]
    axes.plot(
        ends, [fit.intercept + fit.slope * v for v in ends], label=_note(label, fit),
        color=colour, linestyle="-" if label else "--", linewidth=1.2, zorder=2,
    )  # fmt: skip


def _points(axes: Axes, series: Scatter, group: Group, k: int) -> None:
    known = [i for i, (x, y) in enumerate(zip(group.x, group.y, strict=True)) if None not in (x, y)]
    x = [place(series.x, group.x[i], axes.get_xlim()) for i in known]
    y = [place(series.y, group.y[i], axes.get_ylim()) for i in known]
    colour = style.GREY if group.theirs else style.colour(k)
    axes.errorbar(
        x, y, xerr=_reach(group.x_low, group.x_high, known, x, series.x, axes.get_xlim()),
        yerr=_reach(group.y_low, group.y_high, known, y, series.y, axes.get_ylim()),
        fmt=style.marker(k), color=colour, label=group.label, elinewidth=1, capsize=2.5,
        markerfacecolor="white" if group.theirs else colour, zorder=3,
    )  # fmt: skip
    if group.frontier and x:
        best = frontier(list(zip(x, y, strict=True)))
        axes.step(*zip(*best, strict=True), where="post", color=colour, linewidth=1, alpha=0.6)
    for i, px, py in zip(known, x, y, strict=True):
        if group.names is not None:
            axes.annotate(
                group.names[i], (px, py), xytext=(5, 5), textcoords="offset points", fontsize=8,
                color=style.INK,
            )  # fmt: skip


def _reach(
    lows: Sequence[Number | None] | None,
    highs: Sequence[Number | None] | None,
    known: list[int],
    values: list[Number],
    axis: Axis,
    limits: Limits,
) -> list[list[Number]] | None:
    """Lengths of the whiskers, 0 where a point has no interval; None when no point has one."""
    if lows is None or highs is None:
        return None
    ends = [
        [v if side[i] is None else place(axis, side[i], limits) for i, v in zip(known, values, strict=True)]
        for side in (lows, highs)
    ]  # fmt: skip
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
