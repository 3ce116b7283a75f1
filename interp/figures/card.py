"""The figure object: made without pyplot, so that nothing global is touched and nothing leaks."""

from __future__ import annotations

import io

from matplotlib import rc_context
from matplotlib.figure import Figure

from interp.figures.style import GREY, SIZE, STYLE


class Card(Figure):
    """A figure with its footer, which a notebook shows as the last value of a cell."""

    def __init__(self, footer: str) -> None:
        super().__init__(figsize=SIZE, layout="constrained")
        self.supxlabel(footer, fontsize=7.5, color=GREY, x=0.01, ha="left")

    def _repr_svg_(self) -> str:
        return image(self, "svg").decode()


def image(figure: Figure, suffix: str, metadata: dict[str, str] | None = None) -> bytes:
    """The figure as SVG or PNG: the same bytes each time, without date or version of the writer."""
    stamps = ("Software",) if suffix == "png" else ("Date", "Creator")
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format=suffix, metadata=dict.fromkeys(stamps) | (metadata or {}))
    return buffer.getvalue()
