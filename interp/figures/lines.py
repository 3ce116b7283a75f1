"""Lines with intervals, most often by block.

Series: ``x``: ``{label, unit?, values, scale?}``; ``y``: ``{label, unit?, scale?, limits?}``;
``lines``: a list of ``{label, values, low?, high?, x?, theirs?}``, null where there is none, ``x``
where a line has its own places, ``theirs`` for values of a paper (dashed, grey);
``marks?``: a list of ``{axis: "x" or "y", at, label}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from interp.claims import Number
from interp.errors import RecordError
from interp.figures import style
from interp.figures.scales import place, set_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from interp.records import FigureRecord

MOST_MARKERS = 40
MARK_DASHES = (":", "-.", (0, (5, 4)))


def draw(figure: Figure, record: FigureRecord) -> None:
    series = record.series
    axes = figure.subplots()
    lines = series["lines"]
    set_axis(axes, "x", series["x"], series["x"]["values"])
    set_axis(axes, "y", series["y"], [v for line in lines for v in line["values"]])
    for k, line in enumerate(lines):
        _line(axes, series, line, k)
    for k, mark in enumerate(series.get("marks", ())):
        rule = axes.axvline if mark["axis"] == "x" else axes.axhline
        dash = MARK_DASHES[k % len(MARK_DASHES)]
        rule(mark["at"], color=style.INK, linestyle=dash, linewidth=1.2, label=mark["label"])
    axes.set_title(record.title, loc="left")
    style.legend_outside(figure, axes)


def _line(axes: Axes, series: Mapping[str, Any], line: dict[str, Any], k: int) -> None:
    x = line.get("x", series["x"]["values"])
    if len(x) != len(line["values"]):
        raise RecordError(
            f"the line {line['label']!r} has {len(line['values'])} values for {len(x)} places"
        )
    theirs = line.get("theirs", False)
    colour = style.GREY if theirs else style.colour(k)
    axes.plot(
        x, _placed(axes, series, line["values"]), "--" if theirs else "-", color=colour,
        marker=style.marker(k) if len(x) <= MOST_MARKERS else "", label=line["label"],
        markerfacecolor="white" if theirs else colour, markersize=4,
    )  # fmt: skip
    if "low" in line:
        low, high = (_placed(axes, series, line[side]) for side in ("low", "high"))
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)


def _placed(axes: Axes, series: Mapping[str, Any], values: list[Number | None]) -> list[Number]:
    limits = axes.get_ylim()
    return [float("nan") if v is None else place(series["y"], v, limits) for v in values]
