"""``interp papers``: every paper, and what is missing of it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from interp.cli.options import figures_option, json_option, paper_path_option, write_result

COLUMNS = ("paper", "arXiv", "title", ">measured", "missing")


@click.command(epilog="Example: interp papers --check")
@click.argument("keys", nargs=-1, metavar="[PAPER]...")
@click.option("--check", is_flag=True, help="name all that is missing; exit code 1 if anything is")
@figures_option
@paper_path_option
@json_option
def command(
    keys: tuple[str, ...],
    check: bool,
    folder: Path,
    paper_paths: tuple[Path, ...],
    json_file: Path | None,
) -> None:
    """List papers: how many of their figures have a card, and what is missing of card, page or notebook.

    Known are the papers of this package, those of installed packages with an entry point in the group
    `interp.papers`, and those of --paper-path. Pages and notebooks are looked for beside the directory of
    cards, in `papers` and `notebooks`.
    """
    from interp.cli.tables import table
    from interp.pages import problems
    from interp.papers import cards, load_paper, papers

    wanted = [load_paper(key, paper_paths) for key in keys] or [*papers(paper_paths).values()]
    found = cards(folder)
    missing = {paper.key: list(problems(paper, folder)) for paper in wanted}
    rows, content = [], []
    for paper in wanted:
        measured = sum(f"{paper.key}/{spec.name}" in found for spec in paper.figures)
        counts = [f"{measured}/{len(paper.figures)}", str(len(missing[paper.key]) or "")]
        rows.append([paper.key, paper.arxiv, paper.title, *counts])
        figures = [spec.name for spec in paper.figures]
        about = {"key": paper.key, "arxiv": paper.arxiv, "title": paper.title, "figures": figures}
        content.append(about | {"measured": measured, "missing": missing[paper.key]})
    table("papers", COLUMNS, rows)
    write_result(json_file, content)
    if check and any(missing.values()):
        click.echo("\n".join(line for lines in missing.values() for line in lines))
        sys.exit(1)
