"""The papers that this package reproduces. A new one is one name here and one package in methods."""

from __future__ import annotations

import importlib
from pathlib import Path

from interp.errors import RecordError
from interp.records import FigureRecord
from interp.study import Paper

PAPERS = ("representation_engineering",)


def load_paper(key: str) -> Paper:
    """A paper by key. RecordError names those that exist."""
    if key not in PAPERS:
        raise RecordError(f"no paper {key!r}; known: {', '.join(PAPERS)}")
    return importlib.import_module(f"interp.methods.{key}.paper").PAPER


def cards(folder: Path) -> dict[str, FigureRecord]:
    """Every card under a folder of figures, by key. RecordError for a file that is none."""
    found = {}
    for path in sorted(folder.glob("*/*.json")):
        record = FigureRecord.load(path)
        if record.key != path.relative_to(folder).with_suffix("").as_posix():
            raise RecordError(f"{path} holds the card {record.key}; put it where its key says")
        found[record.key] = record
    return found
