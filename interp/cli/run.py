"""``interp run``: measure the figures of a paper."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interp.cli.options import (
    figures_option,
    json_option,
    loading_options,
    loading_values,
    write_result,
)

if TYPE_CHECKING:
    from interp.study import FigureSpec, Paper, Study


@click.command(epilog="Example: interp run representation_engineering --figure reading")
@click.argument("paper")
@click.option(
    "--figure", "names", multiple=True, metavar="NAME", help="this one alone (repeatable)"
)
@click.option(
    "--model", help="smollm2, a directory or a hub id", show_default="that of each figure"
)
@click.option("--limit", type=click.IntRange(min=4), help="prompts per class, for a quick look")
@click.option("--seeds", type=click.IntRange(min=2), default=5, show_default=True,
              help="splits of the topics, for figures with intervals over them")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--fresh", is_flag=True, help="forget what an earlier, interrupted run has left")
@click.option("--use-stale", is_flag=True,
              help="go on from steps that other code measured as well; the card then says so")  # fmt: skip
@figures_option
@loading_options
@json_option
def command(
    paper: str, names: tuple[str, ...], folder: Path, json_file: Path | None, **values: Any
) -> None:
    """Measure the figures of PAPER, write their cards and pictures, and bring its page up to date.

    Long figures keep what they have measured in the user's cache and go on from there, as far as the code,
    the options, the prompts and the model are the same. Without --figure, those about a model that has to
    be installed first (`interp models`) are left out.
    """
    from interp.cli.progress import watching
    from interp.models.embedded import ALIAS
    from interp.pages import update_all
    from interp.papers import load_paper
    from interp.study import Study, kept_directory

    chosen = load_paper(paper)
    model, limit = values["model"], values["limit"]
    wanted = [chosen.figure(name) for name in names]
    wanted = wanted or [spec for spec in chosen.figures if model or not spec.model]
    shared = {name: values[name] for name in ("seeds", "batch_size", "use_stale")}
    shared |= {"kept": kept_directory(paper, fresh=values["fresh"])}
    verdicts = {}
    with watching(folder) as watch:

        @cache
        def study(name: str, limit: int | None) -> Study:
            return Study(name, limit=limit, watch=watch, loading=loading_values(values), **shared)

        for spec in wanted:
            about = study(model or spec.model or ALIAS, limit or spec.limit)
            verdicts |= _measure(chosen, spec, about, folder)
    for page in update_all(folder):
        click.echo(str(page))
    write_result(json_file, verdicts)


def _measure(paper: Paper, spec: FigureSpec, study: Study, folder: Path) -> dict[str, str]:
    """Measure one figure and save its card and picture; its key and verdict."""
    from interp.figures import render
    from interp.study import measure

    record = measure(paper, spec.name, study)
    path = record.save(folder)
    picture = render(path) if record.needs is None else path
    lines = [f"{record.key}: {record.verdict}"]
    if stale := record.provenance.stale:
        lines.append(f"{record.key}: other code measured the steps {', '.join(stale)}")
    for line in lines:
        study.watch.say(line)  # type: ignore[attr-defined]
    click.echo(str(picture))
    return {record.key: record.verdict}
