"""Figures from records: ``draw`` gives a picture, ``render`` turns a record's JSON into its SVG.

No model and no torch: everything that a figure shows is in its record. One kind of figure is one
file of this package, with ``draw(figure, record)`` and the series that it takes in its docstring.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import RecordError
from interp.files import write_text
from interp.records import FigureRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("stacked_attribution", "scatter", "lines", "rows", "heatmap")
FORMATS = (".svg", ".png")

__all__ = ["KINDS", "draw", "render"]


def draw(record: FigureRecord, path: Path | str | None = None) -> Figure:
    """The record's figure, which a notebook shows; with ``path`` (.svg or .png) also written there.

    Raises RecordError for a record without data, an unknown kind, or a series that does not fit it.
    """
    from matplotlib import rc_context

    from interp.figures.card import Card
    from interp.figures.labels import with_drawable_texts
    from interp.figures.style import STYLE, footer

    if record.needs is not None:
        raise RecordError(f"{record.key} has nothing to draw: {record.verdict}")
    if record.kind not in KINDS:
        raise RecordError(f"{record.key}: no figures of kind {record.kind!r}; {', '.join(KINDS)}")
    renderer = importlib.import_module(f"interp.figures.{record.kind}")
    shown = with_drawable_texts(record)
    with rc_context(STYLE):
        figure = Card(footer(record))
        try:
            renderer.draw(figure, shown)
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise RecordError(
                f"{record.key} cannot be drawn as {record.kind!r} ({error!r}); the series it takes "
                f"is described in interp/figures/{record.kind}.py"
            ) from error
        if path is not None:
            _write(figure, Path(path), {"Title": shown.title})
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
