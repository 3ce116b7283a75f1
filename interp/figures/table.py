"""Tables as pictures: numbers with their intervals below them, the best one bold, a paper's rows grey."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.claims import Number
from interp.figures import style
from interp.series import Cells, Column, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

ROW_HEIGHT, TALL_ROW_HEIGHT, FRAME = 0.3, 0.44, 1.15
"""Inches: of a row, of a row where some have intervals, and of heading, title and footer."""
LETTER, GAP = 0.085, 0.3
"""Inches: of a letter, and between two columns."""
MISSING = "–"


def size(series: Table) -> tuple[float, float]:
    height = FRAME + _row_height(series) * len(series.rows)
    return max(style.SIZE[0], sum(_widths(series)) + GAP), max(2.0, height)


def draw(figure: FigureBase, series: Table, title: str) -> None:
    axes = figure.subplots()
    axes.set_axis_off()
    widths = _widths(series)
    starts = [sum(widths[:k]) for k in range(len(widths) + 1)]
    axes.set_xlim(0, starts[-1])
    axes.set_ylim(len(series.rows), -1)
    axes.text(0, -0.35, series.label, weight="bold", va="center")
    for k, column in enumerate(series.columns):
        axes.text(
            starts[k + 2], -0.35, style.axis_label(column), weight="bold", va="center", ha="right"
        )
        for y, row in enumerate(series.rows):
            _cell(axes, series, row, k, (starts[k + 2], y + 0.5))
    for y, row in enumerate(series.rows):
        axes.text(0, y + 0.5, row.label, va="center", color=_colour(row))
    for y, width in ((-0.95, 1.2), (0.0, 0.7), (len(series.rows) - 0.02, 1.2)):
        axes.axhline(y, color=style.INK, linewidth=width)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)


def _cell(axes: Axes, series: Table, row: Cells, k: int, at: tuple[float, float]) -> None:
    value, column = row.values[k], series.columns[k]
    interval = _interval(row, column, k)
    best = not row.theirs and value is not None and value == series.best(k)
    axes.text(
        *at, _written(value, column), ha="right", va="bottom" if interval else "center",
        weight="bold" if best else "normal", color=_colour(row),
    )  # fmt: skip
    if interval:
        axes.text(at[0], at[1] + 0.06, interval, ha="right", va="top", fontsize=7, color=style.GREY)


def _interval(row: Cells, column: Column, k: int) -> str:
    low, high = (side[k] if side is not None else None for side in (row.low, row.high))
    return (
        "" if low is None or high is None else f"{_written(low, column)} … {_written(high, column)}"
    )


def _written(value: Number | str | None, column: Column) -> str:
    if value is None or isinstance(value, str):
        return value or MISSING
    return f"{value:.3g}" if column.decimals is None else f"{value:.{column.decimals}f}"


def _colour(row: Cells) -> str:
    return style.GREY if row.theirs else style.INK


def _row_height(series: Table) -> float:
    return ROW_HEIGHT if all(row.low is None for row in series.rows) else TALL_ROW_HEIGHT


def _widths(series: Table) -> list[float]:
    """Inches of the column of labels and of every other."""
    texts = [[series.label, *(row.label for row in series.rows)]]
    for k, column in enumerate(series.columns):
        texts.append([style.axis_label(column) + " "])  # bold letters are wider
        for row in series.rows:
            texts[-1] += [_written(row.values[k], column), _interval(row, column, k)]
    return [LETTER * max(map(len, column)) + GAP for column in texts]
