"""Markers of a keyword judge: shipped lists by language, or a file with one a line."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

from interp.data.rows import read_rows
from interp.errors import PromptError

ENGLISH = "en"
ALL = "all"


@cache
def languages() -> tuple[str, ...]:
    """Codes of the languages whose markers are shipped (``en``, ``de``, …)."""
    folder = files("interp.data").joinpath("markers")
    names = (f.name for f in folder.iterdir())
    return tuple(sorted(n.removesuffix(".txt") for n in names if n.endswith(".txt")))


def load_markers(name: str = ENGLISH) -> tuple[str, ...]:
    """The markers that ``--markers NAME`` means, each once.

    name: a language (``pt``), several (``en+pt``), ``all``, or a file with one marker a line. Raises
    PromptError for a name that is neither, and for a file without markers.
    """
    parts = languages() if name == ALL else name.split("+")
    if set(parts) <= set(languages()):
        return tuple(dict.fromkeys(m for part in parts for m in _shipped(part)))
    path = Path(name).expanduser()
    if not path.is_file():
        raise PromptError(
            f"no markers {name!r}; give a file with one marker a line, {ALL}, or languages joined by "
            f"+ ({', '.join(languages())})"
        )
    lines = [row.value for row in read_rows(path).rows]
    if not all(isinstance(line, str) for line in lines):
        raise PromptError(f"{name} must hold one marker a line")
    found = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise PromptError(f"{name} holds no markers; put one on each line")
    return found


def _shipped(language: str) -> list[str]:
    file = files("interp.data").joinpath(f"markers/{language}.txt")
    return file.read_text(encoding="utf-8").splitlines()
