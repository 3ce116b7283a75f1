"""Stacked bars per block and kind of component, and below them their running sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp.claims import Number
from interp.figures import style
from interp.series import Axis, Contribution, StackedAttribution, Total

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

MOST_TICKS = 16
WIDTH = 0.8


def draw(figure: FigureBase, series: StackedAttribution, title: str) -> None:
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _bars(top, series)
    _running_sum(bottom, series)
    _ticks(bottom, series.positions)
    top.set_title(title, loc="left")
    style.legend_outside(figure, top)
    style.legend_outside(figure, bottom)


def _bars(axes: Axes, series: StackedAttribution) -> None:
    places = range(len(series.positions))
    above, below = [0.0 for _ in places], [0.0 for _ in places]
    parts = series.parts
    for k, part in enumerate(parts):
        values = part.values
        start = [above[i] if v >= 0 else below[i] for i, v in enumerate(values)]
        colour = style.KIND_COLOURS.get(part.kind, style.colour(k))
        axes.bar(places, values, WIDTH, bottom=start, color=colour, label=part.label, lw=0)
        if part.errors is not None:
            _whiskers(axes, parts, k, start)
        for i, value in enumerate(values):
            (above if value >= 0 else below)[i] += value
    axes.axhline(0, color=style.INK, linewidth=0.8)
    axes.set_ylabel(style.axis_label(Axis("contribution", series.unit)))
    axes.grid(visible=False, axis="x")


def _whiskers(axes: Axes, parts: Sequence[Contribution], k: int, start: list[Number]) -> None:
    """Intervals of part ``k``, side by side within each bar: on one line they would merge."""
    x, y, errors = [], [], []
    for i, error in enumerate(parts[k].errors or ()):
        if not error:
            continue
        here = [n for n, part in enumerate(parts) if part.values[i]]
        share = (here.index(k) + 1) / (len(here) + 1) if k in here else 0.5
        x.append(i + WIDTH * (share - 0.5))
        y.append(start[i] + parts[k].values[i])
        errors.append(error)
    if x:
        axes.errorbar(x, y, yerr=errors, fmt="none", ecolor=style.INK, elinewidth=0.7, alpha=0.75)


def _running_sum(axes: Axes, series: StackedAttribution) -> None:
    places = list(range(len(series.positions)))
    total = series.cumulative
    _line(axes, places, total, style.INK, "-", "sum so far")
    if series.lens is not None:
        _line(axes, places, series.lens, style.COLOURS[4], "--", "logit lens")
    measured = series.measured
    axes.plot(
        places[-1:], [measured], marker="D", markersize=6, linestyle="none", clip_on=False,
        color=style.COLOURS[4], zorder=5,
        label=f"measured: {measured:.3g}\nresidual: {series.residual:.1e}",
    )  # fmt: skip
    axes.axhline(0, color=style.INK, linewidth=0.8)
    axes.set_ylabel(style.axis_label(Axis("total", series.unit)))


def _line(axes: Axes, places: list[int], data: Total, colour: str, dash: str, label: str) -> None:
    values = data.values
    axes.plot(places, values, dash, color=colour, label=label)
    if data.errors is not None:
        low = [v - e for v, e in zip(values, data.errors, strict=True)]
        high = [v + e for v, e in zip(values, data.errors, strict=True)]
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)


def _ticks(axes: Axes, labels: Sequence[str]) -> None:
    # The first label is the embedding's; in a deep model block 0 leaves it the room.
    step = max(1, -(-(len(labels) - 1) // MOST_TICKS))
    places = [0, *(i for i in range(1, len(labels), step) if step == 1 or i > 2)]
    axes.set_xticks(places, [labels[i] for i in places])
    axes.set_xlim(-0.7, len(labels) - 0.3)
    axes.set_xlabel("block")
