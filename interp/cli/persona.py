"""``interp persona``: persona vectors, from the name of a trait or a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interp.cli.options import (
    Given,
    as_is,
    check_place,
    json_option,
    model_options,
    out_option,
    write_result,
)
from interp.cli.recipes import read_recipe, recipe_options
from interp.methods.persona_vectors.recipe import ExtractionRecipe

if TYPE_CHECKING:
    from interp.lm import LM
    from interp.methods.persona_vectors import PersonaVector, PersonaVectorExtractor, Trait
    from interp.methods.persona_vectors.generation import Writer

SERVED = "openai:"

JUDGES = """\b
--judge says what scores the responses:
  auto                     the trait's programmatic score; without one, rubric
  rubric                   the model itself with the trait's rubric, 0 to 100
  rubric:MODEL             another local chat model with it
  rubric:openai:MODEL@URL  a model behind an OpenAI-compatible server with it
                           (the key comes from OPENAI_API_KEY)
  llr                      log-likelihood ratio between two pairs of
                           instructions that no response is made with
or any judge of `interp measure --judge`. --generator writes a trait that no
file has:
  local                    the model itself
  template                 fixed sentences around the name and the description
  openai:MODEL@URL         a model behind an OpenAI-compatible server"""


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
@click.option("--description", default="", help="a sentence that says what the trait is")
@click.option("--generator", metavar="GENERATOR",
              help="what writes a trait that no file has (default: local)")  # fmt: skip
@click.option("--judge", default="auto", show_default=True, metavar="JUDGE",
              help="what scores the responses for the trait")  # fmt: skip
@click.option("--coherence", default="auto", show_default=True, metavar="auto|none|JUDGE",
              help="what scores them for coherence; auto: the judging model, if any")  # fmt: skip
@recipe_options(ExtractionRecipe)
@model_options
@click.option("--thinking/--no-thinking", default=None, help="for templates with that switch")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--fresh", is_flag=True, help="forget the responses and scores of earlier runs")
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
    read = _trait_of(trait, values)
    given = Given(as_is(values))
    lm = given.open()
    with watching(out) as watch:
        extractor, chosen = _extractor(lm.using(watch=watch), trait, read, recipe, values)
        if values["save_trait"]:
            watch.say(f"wrote {chosen.save(values['save_trait'])}")
        persona = extractor.extract(chosen)
    persona.save(out)
    _tell(persona, out)
    write_result(json_file, persona.as_json())


def _trait_of(trait: str, values: dict[str, Any]) -> Trait | None:
    """The trait in a file or one that is shipped; None for words that a generator has to make one of."""
    from interp.errors import PersonaError
    from interp.methods.persona_vectors import Trait, shipped_trait, shipped_traits

    asked = values["generator"] or values["description"]
    if trait.endswith(".json"):
        if asked:
            raise PersonaError(
                "a trait file is read as it is: leave out --generator and --description"
            )
        return Trait.load(trait)
    return shipped_trait(trait) if trait in shipped_traits() and not asked else None


def _extractor(
    lm: LM, name: str, read: Trait | None, recipe: ExtractionRecipe, values: dict[str, Any]
) -> tuple[PersonaVectorExtractor, Trait]:
    """The extractor and the trait that options describe."""
    from interp.judges import named
    from interp.methods.persona_vectors import PersonaVectorExtractor
    from interp.methods.persona_vectors.judging import named_judge
    from interp.study import Study, kept_directory

    study = Study.of(lm, kept=kept_directory("persona", fresh=values["fresh"]))
    writer = _writer(values["generator"])
    first = PersonaVectorExtractor(lm, generator=writer, recipe=recipe, study=study)
    found = read or first.describe(name, values["description"])
    chosen, judge = named_judge(values["judge"], lm, found)
    options: dict[str, Any] = {}
    if (spelling := values["coherence"]) != "auto":
        options["coherence"] = None if spelling == "none" else named(spelling, lm)
    return PersonaVectorExtractor(lm, judge, recipe=recipe, study=study, **options), chosen


def _writer(spelling: str | None) -> Writer | str | None:
    """What ``--generator`` means."""
    from interp.judges.server import Server
    from interp.methods.persona_vectors.generation import ServedWriter

    if spelling is None or not spelling.startswith(SERVED):
        return spelling
    model, _, url = spelling.removeprefix(SERVED).partition("@")
    return ServedWriter(Server(model, url or None))


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
