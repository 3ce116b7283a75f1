"""The neutral text that is shipped for NLL: public-domain prose, one passage a line."""

from __future__ import annotations

from importlib.resources import files


def neutral_passages() -> tuple[str, ...]:
    """Passages of public-domain English prose (sources in ``sets/NEUTRAL_SOURCES.md``)."""
    text = files("interp.data").joinpath("sets/neutral.txt").read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines() if line.strip())
