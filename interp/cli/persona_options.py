"""What the commands of ``interp persona`` share: options, the trait, and its extractor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from interp.cli.options import model_options, stack
from interp.cli.recipes import recipe_options
from interp.methods.persona_vectors.recipe import ExtractionRecipe

if TYPE_CHECKING:
    from interp.lm import LM
    from interp.methods.persona_vectors import PersonaVectorExtractor, Trait
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

extraction_options = stack(
    click.option("--description", default="", help="a sentence that says what the trait is"),
    click.option("--generator", metavar="GENERATOR",
                 help="what writes a trait that no file has (default: local)"),
    click.option("--judge", default="auto", show_default=True, metavar="JUDGE",
                 help="what scores the responses for the trait"),
    click.option("--coherence", default="auto", show_default=True, metavar="auto|none|JUDGE",
                 help="what scores them for coherence; auto: the judging model, if any"),
    recipe_options(ExtractionRecipe),
    model_options,
    click.option("--thinking/--no-thinking", default=None, help="for templates with that switch"),
    click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True),
    click.option("--fresh", is_flag=True, help="forget the responses and scores of earlier runs"),
)  # fmt: skip
"""Options of every command that may extract a vector."""


def trait_of(trait: str, values: dict[str, Any]) -> Trait | None:
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


def extractor_of(
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
