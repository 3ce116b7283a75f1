"""``interp persona``: persona vectors, from the name of a trait or a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interp.cli import audit
from interp.cli.options import (
    Given,
    as_is,
    check_place,
    json_option,
    out_option,
    write_result,
)
from interp.cli.persona_options import JUDGES, extraction_options, extractor_of, trait_of
from interp.cli.persona_steering import monitor, steer
from interp.cli.recipes import read_recipe
from interp.methods.persona_vectors.recipe import ExtractionRecipe

if TYPE_CHECKING:
    from interp.methods.persona_vectors import PersonaVector


@click.group(epilog="Example: interp persona extract terse --model smollm2 --out out/terse")
def command() -> None:
    """Persona vectors (arXiv 2507.21509): what a trait changes in a model's stream, block by block."""


@command.command("list")
def list_traits() -> None:
    """The traits that come with the package, and what scores them."""
    from interp.cli.tables import table
    from interp.methods.persona_vectors import shipped_trait, shipped_traits

    traits = [shipped_trait(name) for name in shipped_traits()]
    rows = [[t.name, t.description, f"trait:{t.score}" if t.score else "rubric"] for t in traits]
    table("traits that come with the package", ("trait", "an answer shows it if", "judge"), rows)


@command.command(epilog=JUDGES)
@click.argument("trait")
@extraction_options
@click.option("--save-trait", type=click.Path(dir_okay=False, path_type=Path), callback=check_place,
              metavar="FILE", help="write the trait as a file, to read or change")  # fmt: skip
@out_option()
@json_option
def extract(trait: str, out: Path, json_file: Path | None, **values: Any) -> None:
    """Extract the persona vectors of TRAIT: a shipped trait, a trait file (.json), or words that name one.

    The model answers questions with and without the trait, a judge scores the answers, and the pairs that
    pass give one vector for the embedding and the output of every block, as .pt files like the authors'.
    Responses and scores are kept in the cache, so that a run after a kill goes on.
    """
    from interp.cli.progress import watching
    from interp.methods.persona_vectors.vectors import check_target

    recipe = read_recipe(ExtractionRecipe, values)
    check_target(out)
    read = trait_of(trait, values)
    lm = Given(as_is(values)).open()
    with watching(out) as watch:
        extractor, chosen = extractor_of(lm.using(watch=watch), trait, read, recipe, values)
        if values["save_trait"]:
            watch.say(f"wrote {chosen.save(values['save_trait'])}")
        persona = extractor.extract(chosen)
    persona.save(out)
    _tell(persona, out)
    write_result(json_file, persona.as_json())


def _tell(persona: PersonaVector, out: Path) -> None:
    from interp.cli.tables import table
    from interp.methods.persona_vectors.filtering import Counts

    record = persona.record
    contrast = record["held_out_contrast"]
    seen = "not checked" if contrast is None else f"AUC {contrast['auc']:.2f} on held-out questions"
    click.echo(f"judge {record['judge']['name']}: {seen}")
    click.echo(str(Counts(**record["counts"])))
    cells = [
        [str(row), "embed" if row == 0 else f"resid_post[{row - 1}]"]
        + [f"{rows[row].norm():.3g}" for rows in persona.vectors.values()]
        for row in range(persona.n_blocks + 1)
    ]
    columns = (">layer", "place", *(f">‖v‖ {name}" for name in persona.vectors))
    table(f"persona vectors of {persona.trait}", columns, cells)
    click.echo(f"wrote {out}")


command.add_command(steer)
command.add_command(monitor)
command.add_command(audit.command, "audit")
