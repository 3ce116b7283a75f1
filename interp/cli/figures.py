"""``interp figures``: every figure card, and what it says."""

from __future__ import annotations

from pathlib import Path

import click

from interp.cli.options import figures_option, json_option, write_result


@click.command(epilog="Example: interp figures")
@figures_option
@json_option
def command(folder: Path, json_file: Path | None) -> None:
    """List every figure card: its paper's figure, its model, its verdict.

    A figure that a paper lists but nobody has measured yet is shown as missing.
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
        rows.append([key, card.paper_figure or "ours", card.provenance.model, card.verdict])
    for paper in map(load_paper, PAPERS):
        for spec in paper.figures:
            if (key := f"{paper.key}/{spec.name}") not in found:
                rows.append([key, spec.stands_for or "ours", "", "missing"])
                missing.append(f"interp run {paper.key} --figure {spec.name}")
    rows.sort()
    short = [[key, whose.split(",")[0], *rest] for key, whose, *rest in rows]
    table(f"figures in {folder}", ("card", "stands for", "model", "verdict"), short)
    if missing:
        click.echo("\n".join(("missing; measure them with", *missing)))
    content = [
        dict(zip(("key", "stands_for", "model", "verdict"), row, strict=True)) for row in rows
    ]
    write_result(json_file, content)
