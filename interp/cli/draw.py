"""``interp draw``: pictures and pages again from their data."""

from __future__ import annotations

from pathlib import Path

import click

from interp.cli.options import figures_option, json_option, paper_path_option, write_result


@click.command(epilog="Example: interp draw refusal/report")
@click.argument("keys", nargs=-1, metavar="[CARD]...")
@figures_option
@click.option(
    "--pages",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="directory of the papers' pages  [default: papers, beside the directory of cards]",
)
@paper_path_option
@click.option("--png", is_flag=True, help="PNG instead of SVG")
@json_option
def command(
    keys: tuple[str, ...],
    folder: Path,
    pages: Path | None,
    paper_paths: tuple[Path, ...],
    png: bool,
    json_file: Path | None,
) -> None:
    """Draw figure cards again from their JSON, without a model and without torch.

    CARD is a key such as refusal/report; without any, all cards under the folder are drawn. The pages of
    the papers, where there are any, then say what all cards say.
    """
    from interp.errors import RecordError
    from interp.figures import render
    from interp.pages import update_all
    from interp.papers import papers
    from interp.records import FigureRecord

    known = papers(paper_paths)
    paths = [folder / f"{key}.json" for key in keys] or sorted(folder.glob("*/*.json"))
    if not paths:
        raise RecordError(
            f"no cards under {folder}; name the directory that holds them with --folder"
        )
    drawn = {}
    for path in paths:
        record = FigureRecord.load(path)
        if record.needs is not None:
            click.echo(f"{record.key}: {record.verdict}")
        else:
            drawn[record.key] = str(render(path, ".png" if png else ".svg"))
            click.echo(drawn[record.key])
    for page in update_all(known.values(), folder, pages):
        click.echo(str(page))
    write_result(json_file, drawn)
