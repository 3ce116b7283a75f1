"""Text of tokenizers and users made fit to show: in a figure, a table on a terminal, or Markdown."""

from __future__ import annotations

import html
import re

_MARKDOWN = re.compile(r"([\\`*\[\]|])")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str, *, keep: str = "") -> str:
    r"""``text`` with everything that has no glyph written as an escape: ``\n``, ``\x1b``, ``\u202e``.

    Escaped are control and format characters (among them marks of text direction), separators other
    than the space, lone surrogates, and code points that are private or unassigned, save those in
    ``keep``. The result is valid in XML and UTF-8, prints on one line and cannot steer a terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c in keep or c.isprintable() else escaped(c) for c in text)


def escaped(character: str) -> str:
    r"""One character as a Python escape: ``\n``, ``\x1b``, ``\u202e`` or ``\U000e0001``."""
    code = ord(character)
    width = "x%02x" if code < 0x100 else "u%04x" if code < 0x10000 else "U%08x"
    return _SHORT.get(character, "\\" + width % code)


def markdown(text: str) -> str:
    """``text`` as Markdown that shows it literally, also within a cell of a table."""
    return _MARKDOWN.sub(r"\\\1", html.escape(printable(text), quote=False))
