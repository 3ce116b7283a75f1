"""Maps of numbers on two axes; missing cells are hatched, small maps have numbers in their cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interp.figures import style
from interp.series import HeatMap, MapPanel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

MAPS = {
    "sequential": "Blues",
    "diverging": "PuOr",
}
"""Both are listed as safe for colour-blind readers by ColorBrewer (Harrower and Brewer, 2003)."""
MOST_TICKS = 24
ROOM = 85
"""Letters that fit side by side below the columns; longer names are written upwards."""
MOST_NUMBERS = 12
"""Columns up to which numbers fit into the cells of a card."""
ROW_HEIGHT, FRAME, WITHOUT_ROWS = 0.3, 1.15, 0.75
"""Inches: of a row, of what stands above and below all panels, and around one panel."""
TALLEST = 9.0
DARK = 0.55
"""Luminance below which white writing is easier to read."""


def size(series: HeatMap) -> tuple[float, float]:
    height = ROW_HEIGHT * len(series.rows.names) + WITHOUT_ROWS
    return style.SIZE[0], min(TALLEST, FRAME + len(series.panels) * max(height, 1.4))


def draw(figure: FigureBase, series: HeatMap, title: str) -> None:
    drawn = figure.subplots(len(series.panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(drawn, series.panels, strict=True):
        _panel(figure, axes, panel, series)
    drawn[-1].set_xlabel(style.axis_label(series.columns))
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)


def _panel(figure: FigureBase, axes: Axes, panel: MapPanel, series: HeatMap) -> None:
    from matplotlib import colormaps

    low, high = panel.ends
    values = [[float("nan") if v is None else v for v in row] for row in panel.values]
    colours = colormaps[MAPS[panel.map]]
    image = axes.pcolormesh(
        values, cmap=colours, vmin=low, vmax=high, edgecolors="white", linewidth=0.8
    )
    axes.invert_yaxis()  # the first row on top
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    _hatch(axes, panel)
    _names(axes, series)
    if len(series.columns.names) <= MOST_NUMBERS:
        _numbers(axes, panel, image)
    bar = figure.colorbar(image, ax=axes, pad=0.015, fraction=0.05, aspect=12)
    bar.outline.set_visible(False)
    bar.set_label(style.axis_label(panel))
    title = panel.title
    if (mark := panel.reference) is not None and low <= mark.at <= high:
        bar.ax.axhline(mark.at, color=style.COLOURS[4], linewidth=1.6)
        title += f"{' · ' if title else ''}line on the bar: {mark.label} ({mark.at:.2g})"
    axes.set_title(title, loc="left", fontsize=9)


def _hatch(axes: Axes, panel: MapPanel) -> None:
    """Cells for things that do not exist must not look like zeros."""
    from matplotlib.patches import Rectangle

    for y, row in enumerate(panel.values):
        for x, value in enumerate(row):
            if value is None:
                axes.add_patch(
                    Rectangle(
                        (x, y), 1, 1, fill=False, hatch="////", edgecolor=style.PALE, linewidth=0
                    )
                )


def _names(axes: Axes, series: HeatMap) -> None:
    for name, axis in (("x", series.columns), ("y", series.rows)):
        names = axis.names
        step = max(1, -(-len(names) // MOST_TICKS))
        places = range(0, len(names), step)
        shown = [names[i] for i in places]
        long = name == "x" and sum(len(text) + 1 for text in shown) > ROOM
        getattr(axes, f"set_{name}ticks")(
            [i + 0.5 for i in places], shown, rotation=90 if long else 0
        )
    axes.set_ylabel(style.axis_label(series.rows) if series.rows.label else "")


def _numbers(axes: Axes, panel: MapPanel, image: Any) -> None:
    for y, row in enumerate(panel.values):
        for x, value in enumerate(row):
            if value is not None:
                red, green, blue, _ = image.cmap(image.norm(value))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < DARK
                axes.text(
                    x + 0.5, y + 0.5, f"{value:.2g}", ha="center", va="center", fontsize=7.5,
                    color="white" if dark else style.INK,
                )  # fmt: skip
