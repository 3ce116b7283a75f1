"""``interp run``: measure the figures of a paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interp.cli.options import (
    figures_option,
    json_option,
    loading_options,
    loading_values,
    paper_path_option,
    write_result,
)

if TYPE_CHECKING:
    from interp.study import FigureSpec, Paper, Study
    from interp.watching import Watch


@click.command(epilog="Example: interp run representation_engineering --figure reading")
@click.argument("paper")
@click.option(
    "--figure", "names", multiple=True, metavar="NAME", help="this one alone (repeatable)"
)
@click.option(
    "--model", help="smollm2, a directory or a hub id", show_default="that of each figure"
)
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="model, figures and recipes from YAML, as in configs/; options override it")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=4), help="prompts per class, for a quick look")
@click.option("--seeds", type=click.IntRange(min=2), default=5, show_default=True,
              help="splits of the topics, for figures with intervals over them")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE",
              help="another setting of the figures' recipe; OUTER.NAME if nested (repeatable)")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--fresh", is_flag=True, help="forget what an earlier, interrupted run has left")
@click.option("--use-stale", is_flag=True,
              help="go on from steps that other code measured as well; the card then says so")  # fmt: skip
@figures_option
@paper_path_option
@loading_options
@json_option
def command(
    paper: str,
    names: tuple[str, ...],
    settings: tuple[str, ...],
    folder: Path,
    paper_paths: tuple[Path, ...],
    json_file: Path | None,
    **values: Any,
) -> None:
    """Measure the figures of PAPER, write their cards and pictures, and bring its page up to date.

    PAPER is one of `interp papers`, or that of --paper-path. Long figures keep what they have measured in the
    user's cache and go on from there, as far as the code, the options, the recipe, the prompts and the model
    are the same. Without --figure, all are measured but those about a model that has to be installed first
    (`interp models`). --config configs/persona_vectors_qwen2.5-7b.yaml runs a paper on its own model. A paper
    without a page gets one where there is a directory `papers` beside the cards.
    """
    from interp.cli.progress import watching
    from interp.pages import begin, update_all
    from interp.papers import load_paper

    chosen = load_paper(paper, paper_paths)
    given = _configured(values)
    wanted = _wanted(chosen, names or tuple(given), values["model"])
    recipes = {s.name: _recipe(s, (*given.get(s.name, ()), *settings)) for s in wanted}
    verdicts = {}
    with watching(folder) as watch:
        for spec, study in _studies(paper, wanted, values, watch):
            verdicts |= _measure(chosen, spec, study, folder, recipes[spec.name])
    begin(chosen, folder)
    for page in update_all([chosen], folder):
        click.echo(str(page))
    write_result(json_file, verdicts)


def _wanted(paper: Paper, names: tuple[str, ...], model: str | None) -> list[FigureSpec]:
    """The figures that are named; without names, all whose model is at hand or given."""
    named = [paper.figure(name) for name in names]
    return named or [spec for spec in paper.figures if model or not spec.model]


def _studies(
    key: str, specs: list[FigureSpec], values: dict[str, Any], watch: Watch
) -> list[tuple[FigureSpec, Study]]:
    """Every figure with its study; those of one model and limit share one, and so open the model once."""
    from interp.models.embedded import ALIAS
    from interp.study import Study, kept_directory

    shared = {name: values[name] for name in ("seeds", "batch_size", "use_stale")}
    shared["kept"] = kept_directory(key, fresh=values["fresh"])
    shared["loading"] = loading_values(values)
    wanted = [
        (values["model"] or spec.model or ALIAS, values["limit"] or spec.limit) for spec in specs
    ]
    studies = {(m, limit): Study(m, limit, watch=watch, **shared) for m, limit in wanted}
    return [(spec, studies[place]) for spec, place in zip(specs, wanted, strict=True)]


def _configured(values: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Settings by figure that the file of ``--config`` names; its other values go into ``values``.

    The file holds ``model``, ``dtype``, ``limit`` and ``parts``, a list of ``figures`` with their ``recipe``.
    InterpError for anything else.
    """
    import yaml

    from interp.errors import InterpError

    if (path := values.pop("config")) is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        parts = content.pop("parts")
        figures = {
            name: tuple(_settings(part.get("recipe") or {}))
            for part in parts
            for name in part["figures"]
        }
        if unknown := content.keys() - {"model", "dtype", "limit"}:
            raise KeyError(min(unknown))
    except (
        OSError,
        UnicodeDecodeError,
        yaml.YAMLError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise InterpError(
            f"{path} is no config ({type(error).__name__}: {str(error).splitlines()[0]}): it needs parts, "
            "each with figures and a recipe, and may name model, dtype and limit"
        ) from None
    for name, value in content.items():
        values[name] = values[name] or value
    return figures


def _settings(recipe: dict[str, Any], outer: str = "") -> Iterator[str]:
    """Nested settings as ``OUTER.NAME=VALUE``."""
    import json

    for name, value in recipe.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{outer}{name}.")
        else:
            yield f"{outer}{name}={json.dumps(value)}"


def _recipe(spec: FigureSpec, settings: tuple[str, ...]) -> Any:
    """The recipe of a figure with other settings. InterpError for a figure that has none."""
    from interp.errors import InterpError
    from interp.recipes import changed

    if settings and spec.recipe is None:
        raise InterpError(f"the figure {spec.name} has no recipe to set {settings[0]!r} in")
    return changed(spec.recipe, settings)


def _measure(
    paper: Paper, spec: FigureSpec, study: Study, folder: Path, recipe: Any
) -> dict[str, str]:
    """Measure one figure and save its card and picture; its key and verdict."""
    from interp.figures import render
    from interp.study import measure

    record = measure(paper, spec.name, study, recipe)
    path = record.save(folder)
    picture = render(path) if record.needs is None else path
    lines = [f"{record.key}: {record.verdict}"]
    if stale := record.provenance.stale:
        lines.append(f"{record.key}: other code measured the steps {', '.join(stale)}")
    for line in lines:
        study.watch.say(line)  # type: ignore[attr-defined]
    click.echo(str(picture))
    return {record.key: record.verdict}
