"""Figures from records: ``draw`` gives a picture, ``render`` turns a record's JSON into its SVG.

No model and no torch: everything that a figure shows is in its record. One kind of :mod:`interp.series` is
drawn by the module of this package with its name: ``plot(axes, series)`` where one pair of axes is enough,
``draw(figure, series, title)`` otherwise; ``size(series)`` in inches where the house size does not do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import RecordError
from interp.files import write_text
from interp.records import FigureRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png")

__all__ = ["draw", "render"]


def draw(record: FigureRecord, path: Path | str | None = None) -> Figure:
    """The record's figure, which a notebook shows; with ``path`` (.svg or .png) also written there.

    Raises RecordError for a record without data.
    """
    from matplotlib import rc_context

    from interp.figures.card import Card, fill
    from interp.figures.labels import drawable, with_drawable_texts
    from interp.figures.style import STYLE, footer

    if record.series is None:
        raise RecordError(f"{record.key} has nothing to draw: {record.verdict}")
    title = drawable(record.title)
    with rc_context(STYLE):
        figure = Card(footer(record))
        fill(figure, with_drawable_texts(record.series), title)
        if path is not None:
            _write(figure, Path(path), {"Title": title})
    return figure


def render(json_path: Path | str, suffix: str = ".svg") -> Path:
    """Draw a record's JSON file beside it, as SVG or PNG, and return the picture's path."""
    target = Path(json_path).with_suffix(suffix)
    draw(FigureRecord.load(json_path), target)
    return target


def _write(figure: Any, path: Path, metadata: dict[str, str]) -> None:
    from interp.figures.card import image

    if path.suffix not in FORMATS:
        raise RecordError(f"figures are written as {' or '.join(FORMATS)}, not {path.suffix!r}")
    content = image(figure, path.suffix[1:], metadata)
    if path.suffix == ".svg":
        write_text(path, content.decode())
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
