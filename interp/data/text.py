"""Neutral text, one passage a line: that for NLL, and other prose for fits to leave alone."""

from __future__ import annotations

from importlib.resources import files


def neutral_passages() -> tuple[str, ...]:
    """Passages of public-domain English prose (sources in ``sets/NEUTRAL_SOURCES.md``)."""
    return _lines("neutral.txt")


def fit_passages() -> tuple[str, ...]:
    """Passages that a fit may read (``sets/PROSE_SOURCES.md``): none is from a work in ``neutral.txt``."""
    return _lines("prose.txt")


def _lines(name: str) -> tuple[str, ...]:
    text = files("interp.data").joinpath(f"sets/{name}").read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines() if line.strip())
