"""The figure object: made without pyplot, so that nothing global is touched and nothing leaks."""

from __future__ import annotations

import importlib.util
import io
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure, FigureBase

from interp.errors import RecordError
from interp.figures.style import GREY, SIZE, STYLE, legend_outside
from interp.series import Series


class Card(Figure):
    """A figure with its footer, which a notebook shows as the last value of a cell."""

    def __init__(self, footer: str) -> None:
        super().__init__(figsize=SIZE, layout="constrained")
        self.supxlabel(footer, fontsize=7.5, color=GREY, x=0.01, ha="left")

    def _repr_svg_(self) -> str:
        return image(self, "svg").decode()


def renderer(series: Series) -> Any:
    """The module of this package that draws a kind of series. RecordError where there is none."""
    name = f"interp.figures.{series.kind}"
    if importlib.util.find_spec(name) is None:
        raise RecordError(
            f"nothing draws the kind {series.kind!r}; add interp/figures/{series.kind}.py"
        )
    return importlib.import_module(name)


def size(series: Series) -> tuple[float, float]:
    """Width and height of a figure of one series, in inches."""
    found = getattr(renderer(series), "size", None)
    return found(series) if found else SIZE


def fill(figure: Card, series: Series, title: str) -> None:
    """Draw one series on a whole figure."""
    figure.set_size_inches(*size(series))
    draw_on(figure, series, title)


def draw_on(figure: FigureBase, series: Series, title: str) -> None:
    """Draw one series on a figure or a part of one."""
    module = renderer(series)
    if not series.on_one_plot:
        module.draw(figure, series, title)
        return
    axes = figure.subplots()
    module.plot(axes, series)
    axes.set_title(title, loc="left")
    legend_outside(figure, axes)


def image(figure: Figure, suffix: str, metadata: dict[str, str] | None = None) -> bytes:
    """The figure as SVG or PNG: the same bytes each time, without date or version of the writer."""
    stamps = ("Software",) if suffix == "png" else ("Date", "Creator")
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format=suffix, metadata=dict.fromkeys(stamps) | (metadata or {}))
    return buffer.getvalue()
