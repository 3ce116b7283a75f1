"""``interp figures``: every figure card, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from interp.cli.options import figures_option, json_option, paper_path_option, write_result

if TYPE_CHECKING:
    from interp.records import Provenance
    from interp.study import FigureSpec


@click.command(epilog="Example: interp figures")
@figures_option
@paper_path_option
@json_option
def command(folder: Path, paper_paths: tuple[Path, ...], json_file: Path | None) -> None:
    """List every figure card: its paper's figure, its model, its verdict.

    A figure that a paper lists but nobody has measured yet is shown as missing. The column `code` says
    whether the code that made a card has changed since. It is `other recipe` where the settings are not those
    that the paper has now, and `unknown` where a card does not say what made it, or where its paper is
    neither installed nor given with --paper-path.
    """
    from interp.cli.tables import table
    from interp.errors import RecordError
    from interp.papers import cards, papers

    if not folder.is_dir():
        raise RecordError(f"no directory {folder}; name the one that holds the cards with --folder")
    known, found = papers(paper_paths), cards(folder)
    rows: list[list[str]] = []
    missing: list[str] = []
    specs = {f"{p.key}/{spec.name}": spec for p in known.values() for spec in p.figures}
    for key, card in found.items():
        model, made = card.provenance.model, code_state(card.provenance, specs.get(key))
        rows.append([key, card.paper_figure or "ours", model, card.verdict, made])
    for paper in known.values():
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


def code_state(provenance: Provenance, spec: FigureSpec | None = None) -> str:
    """``same``, ``changed``, ``other recipe``, ``stale steps`` or ``unknown``: a card's code beside today's.

    spec: the figure as its paper lists it now.
    """
    from interp.source import code_hash, parsed
    from interp.study import settings_of

    if provenance.model == "none":
        return ""  # nothing was measured
    if not provenance.made_by or not provenance.code:
        return "unknown"
    if parsed(provenance.made_by.partition(":")[0]) is None:
        return "unknown"  # of a paper that is not known here
    if code_hash(provenance.made_by) != provenance.code:
        return "changed"
    if spec is not None and provenance.recipe != settings_of(spec.recipe):
        return "other recipe"
    return "stale steps" if provenance.stale else "same"
