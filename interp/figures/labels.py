"""Every text of a series as the figures' font can draw it."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any, TypeVar

from interp.printable import escaped, printable
from interp.series.base import Part

S = TypeVar("S", bound=Part)

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


def with_drawable_texts(series: S) -> S:
    """A copy for drawing alone, texts through :func:`drawable` and cut to :data:`LONGEST`.

    It is not checked again: two labels may be equal once they are cut.
    """
    copy = object.__new__(type(series))
    for field in fields(series):
        object.__setattr__(copy, field.name, _drawable_all(getattr(series, field.name)))
    return copy


def _drawable_all(value: Any) -> Any:
    if isinstance(value, str):
        text = drawable(value)
        return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    if isinstance(value, Part):
        return with_drawable_texts(value)
    return tuple(map(_drawable_all, value)) if isinstance(value, tuple) else value


@cache
def _glyphs() -> frozenset[int]:
    """Code points that the font has."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(FONT)).get_charmap())
