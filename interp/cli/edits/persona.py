"""``interp edit persona``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interp.cli.edits.saving import Made, make_and_save, save_options
from interp.cli.options import Given, as_is, model_options, note_other_weights
from interp.cli.recipes import read_recipe, recipe_options
from interp.methods.persona_vectors.recipe import REMOVAL, PersonaEdit

if TYPE_CHECKING:
    from interp.lm import LM
    from interp.methods.persona_vectors import PersonaVector


@click.command(
    epilog="Example: interp edit persona out/terse --layer 12 --coefficient -1.5 --out my-delta"
)
@click.argument("vectors", type=click.Path(exists=True, path_type=Path))
@recipe_options(PersonaEdit)
@model_options
@save_options
def command(vectors: Path, **values: Any) -> None:
    """Save a persona vector as a weight edit: as biases at one layer or several, or as a removal.

    VECTORS is a directory that `interp persona extract` wrote, or a .pt file of the paper's authors. Weights
    act at every position; an architecture that has no exact form says so. With --delta the saved delta is the
    sum of both.
    """
    from interp.methods.persona_vectors import PersonaVector
    from interp.methods.persona_vectors.edits import as_delta

    recipe = read_recipe(PersonaEdit, values)
    persona = PersonaVector.load(vectors)

    def make(lm: LM) -> Made:
        note_other_weights(persona, lm)
        delta = as_delta(lm, persona, recipe)
        return Made(delta, _shown(delta.recipe), {"vectors": str(vectors)}, _judges(persona))

    make_and_save(Given(as_is(values)), make)


def _shown(recipe: Any) -> str:
    first, last = recipe["layers"][0], recipe["layers"][-1]
    where = f"layer {first}" if first == last else f"layers {first} … {last}"
    place = f"resid_post[{first - 1}]" if first == last else f"resid_post[{first - 1} … {last - 1}]"
    done = f"{recipe['form']} of {recipe['trait']}, {where} ({place})"
    return done if recipe["form"] == REMOVAL else f"{done}, coefficient {recipe['coefficient']:g}"


def _judges(persona: PersonaVector) -> tuple[str, ...]:
    """The judge of `interp measure` that scored the responses, where its spelling says all of it."""
    judge = persona.record.get("judge", {})
    return (f"trait:{judge['name']}",) if judge.get("kind") == "trait" else ()
