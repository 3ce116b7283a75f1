"""``interp figures``: every figure card, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from interp.cli.options import figures_option, json_option, write_result

if TYPE_CHECKING:
    from interp.records import Provenance


@click.command(epilog="Example: interp figures")
@figures_option
@json_option
def command(folder: Path, json_file: Path | None) -> None:
    """List every figure card: its paper's figure, its model, its verdict.

    A figure that a paper lists but nobody has measured yet is shown as missing. The column `code` says
    whether the code that made a card has changed since; `unknown` for a card that does not say what made it.
    """
    from interp.cli.tables import table
    from interp.errors import RecordError
    from interp.papers import PAPERS, cards, load_paper

    if not folder.is_dir():
        raise RecordError(f"no directory {folder}; name the one that holds the cards with --folder")
    found = cards(folder)
    rows: list[list[str]] = []
    missing: list[str] = []
    for key, card in found.items():
        model, made = card.provenance.model, code_state(card.provenance)
        rows.append([key, card.paper_figure or "ours", model, card.verdict, made])
    for paper in map(load_paper, PAPERS):
        for spec in paper.figures:
            if (key := f"{paper.key}/{spec.name}") not in found:
                rows.append([key, spec.stands_for or "ours", "", "missing", ""])
                missing.append(f"interp run {paper.key} --figure {spec.name}")
    rows.sort()
    short = [[key, whose.split(",")[0], *rest] for key, whose, *rest in rows]
    table(f"figures in {folder}", ("card", "stands for", "model", "verdict", "code"), short)
    if missing:
        click.echo("\n".join(("missing; measure them with", *missing)))
    content = [
        dict(zip(("key", "stands_for", "model", "verdict", "code"), row, strict=True))
        for row in rows
    ]
    write_result(json_file, content)


def code_state(provenance: Provenance) -> str:
    """``same``, ``changed``, ``stale steps`` or ``unknown``: the code of a card beside that of today."""
    from interp.source import code_hash

    if provenance.model == "none":
        return ""  # nothing was measured
    if not provenance.made_by or not provenance.code:
        return "unknown"
    if code_hash(provenance.made_by) != provenance.code:
        return "changed"
    return "stale steps" if provenance.stale else "same"
