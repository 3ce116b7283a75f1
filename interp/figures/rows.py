"""Rows as a dot plot: one row per thing compared, one panel per measure, the values written out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from interp.claims import Number
from interp.figures import style
from interp.figures.scales import place, set_axis
from interp.series import Axis, Row, Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

ROW_HEIGHT, FRAME = 0.46, 1.35
MARGIN = 0.12
"""Of a panel's width, on both sides: a number beside the axis is not struck through by it."""
LABELS, COLUMN = 1.6, 1.85
"""Inches for the row labels and for a column, so that neighbouring axis labels stay apart."""


def size(series: Rows) -> tuple[float, float]:
    width = LABELS + COLUMN * len(series.columns)
    return max(style.SIZE[0], width), max(2.4, FRAME + ROW_HEIGHT * len(series.rows))


def draw(figure: FigureBase, series: Rows, title: str) -> None:
    columns, rows = series.columns, series.rows
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for k, (axes, column) in enumerate(zip(panels, columns, strict=True)):
        set_axis(axes, "x", column, [v for row in rows for v in _known(row, k)])
        for y, row in enumerate(rows):
            _dot(axes, column, row, k, y)
        span = axes.get_xlim()  # of all the dots
        for y, row in enumerate(rows):
            _number(axes, column, row.values[k], y, span)
        _room(axes)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(rows)), [row.label for row in rows])
    panels[0].set_ylim(len(rows) - 0.4, -0.75)  # the first row on top, with room for its value
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)


def _room(axes: Axes) -> None:
    """A margin beside the outermost values, on whatever scale."""
    scale = axes.xaxis.get_transform()
    low, high = scale.transform(axes.get_xlim())
    reach = MARGIN * (high - low)
    axes.set_xlim(scale.inverted().transform((low - reach, high + reach)))


def _written(value: Number, column: Axis, span: tuple[float, float]) -> str:
    """Three digits; on a linear axis a thousandth of its span, so that a short one tells 3.706 from 3.712."""
    if column.scale != "linear":
        return f"{value:.3g}"
    decimals = max(3 - math.floor(math.log10(span[1] - span[0])), 0)
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _known(row: Row, k: int) -> list[Number]:
    """Value and interval of one row in one column, without the missing ones."""
    found = [row.values[k], *_ends(row, k)]
    return [v for v in found if v is not None]


def _ends(row: Row, k: int) -> list[Number | None]:
    return [side[k] for side in (row.low, row.high) if side is not None]


def _dot(axes: Axes, column: Axis, row: Row, k: int, y: int) -> None:
    value = row.values[k]
    if value is None:
        return
    limits = axes.get_xlim()
    x = place(column, value, limits)
    colour = style.GREY if row.theirs else style.COLOURS[0]
    ends = [v for v in _ends(row, k) if v is not None]
    if ends:
        axes.plot(
            [place(column, v, limits) for v in ends], [y, y], color=colour, linewidth=2, alpha=0.5,
            solid_capstyle="butt",
        )  # fmt: skip
    axes.plot(
        [x], [y], marker="o", color=colour, markersize=7, clip_on=False, zorder=3,
        markerfacecolor="white" if row.theirs else colour,
    )  # fmt: skip


def _number(
    axes: Axes, column: Axis, value: Number | None, y: int, span: tuple[float, float]
) -> None:
    if value is not None:
        axes.annotate(
            _written(value, column, span),
            (place(column, value, span), y),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
        )
