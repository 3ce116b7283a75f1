"""Texts of tokenizers and users are shown literally, on one line, wherever they are written."""

from __future__ import annotations

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from interp.printable import markdown, printable

ANY = st.text(st.characters(codec=None))


@given(ANY)
def test_what_is_shown_is_one_valid_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()
    assert printable(shown) == shown


def test_escapes_are_those_of_python() -> None:
    assert printable("a\nb\x1b[0m\u202e\ud800\U000e0001\xa0") == (
        "a\\nb\\x1b[0m\\u202e\\ud800\\U000e0001\\xa0"
    )
    assert printable("naïve 抱歉 \ufffd <b> $x$") == "naïve 抱歉 \ufffd <b> $x$"
    assert printable("a\nb\x07", keep="\n") == "a\nb\\x07"


@given(ANY)
def test_markdown_breaks_neither_tables_nor_html(text: str) -> None:
    shown = markdown(text)
    assert "|" not in shown.replace("\\\\", "").replace("\\|", "")
    ElementTree.fromstring(f"<p>{shown}</p>")
    assert "\n" not in shown
