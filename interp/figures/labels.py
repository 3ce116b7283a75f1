"""Every text of a record as the figures' font can draw it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from interp.printable import escaped, printable

if TYPE_CHECKING:
    from interp.records import FigureRecord

FONT = "DejaVu Sans"
"""It comes with matplotlib, so a figure looks alike on every machine."""
LONGEST = 60
"""Characters of a label: a longer one would leave its axes no room."""


def drawable(text: str) -> str:
    r"""``text`` with what cannot be printed, or has no glyph in :data:`FONT`, as escapes (``\u4f60``)."""
    text = printable(text)
    return (
        text if text.isascii() else "".join(c if ord(c) in _glyphs() else escaped(c) for c in text)
    )


def with_drawable_texts(record: FigureRecord) -> FigureRecord:
    """The record with title and labels through :func:`drawable`, labels cut to :data:`LONGEST`."""
    return replace(record, title=drawable(record.title), series=_all(record.series))


def _all(value: Any) -> Any:
    if isinstance(value, str):
        text = drawable(value)
        return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    if isinstance(value, Mapping):
        return {k: _all(v) for k, v in value.items()}
    return [_all(v) for v in value] if isinstance(value, list) else value


@cache
def _glyphs() -> frozenset[int]:
    """Code points that the font has."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(FONT)).get_charmap())
