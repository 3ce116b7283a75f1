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
from interp.series import Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png")

__all__ = ["draw", "render"]


def draw(
    figure: FigureRecord | Series, path: Path | str | None = None, *, title: str | None = None
) -> Figure:
    """The picture of a record, or of a series alone, which a notebook shows.

    path: where it is also written, as .svg or .png. title: by default that of the record.
    Raises RecordError for a record without data, and for another suffix.
    """
    from matplotlib import rc_context

    from interp.figures.card import Card, fill
    from interp.figures.labels import drawable, with_drawable_texts
    from interp.figures.style import STYLE, footer

    record = figure if isinstance(figure, FigureRecord) else None
    series = record.series if record else figure
    if not isinstance(series, Series):
        why = record.verdict if record else "it is neither a record nor one of interp.series"
        raise RecordError(f"{record.key if record else figure!r} has nothing to draw: {why}")
    heading = drawable(title if title is not None else record.title if record else "")
    with rc_context(STYLE):
        card = Card(footer(record) if record else "")
        fill(card, with_drawable_texts(series), heading)
        if path is not None:
            _write(card, Path(path), {"Title": heading})
    return card


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
