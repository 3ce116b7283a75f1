"""``interp edit least-disturbance``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from interp.cli.edits.saving import Made, edit_options, finish, make_and_save
from interp.cli.options import Given, pool_option
from interp.cli.recipes import read_recipe, recipe_options
from interp.recipes import AUTO, LeastDisturbanceEdit

if TYPE_CHECKING:
    from interp.data import PromptSet
    from interp.lm import LM


@click.command(
    epilog="Example: interp edit least-disturbance --model smollm2 --after-opener auto --out my-delta"
)
@recipe_options(LeastDisturbanceEdit)
@edit_options
@pool_option
def command(**values: Any) -> None:
    """Move refused requests to answered ones and disturb answers least: fit, choose, save a delta.

    Name --block, --first-block and --strength to choose nothing. With --delta the edit is fitted on the model
    with that delta in it, and what is saved is the sum of both.
    """
    recipe = read_recipe(LeastDisturbanceEdit, values)
    given = Given(values)
    fit_r, fit_c, select_r, select_c = given.fit_and_select()

    def fit(lm: LM) -> Made:
        from interp.methods import refusal

        reading: dict[str, Any] = {
            "recipe": recipe.direction, "all_requests": recipe.all_requests, "judge": given.judge,
            "opener": _opener(recipe, given, lm, fit_r, fit_c),
        }  # fmt: skip
        pool = given.pool(fit_r, select_r, select_c)
        pool = pool and pool.spread(recipe.most_pool)
        respond_to = None
        if recipe.responses and recipe.response_weight:
            respond_to = (pool or fit_c).spread(recipe.responses)
        fitted = refusal.fit(lm, fit_r, fit_c, pool=pool, respond_to=respond_to, **reading)
        return finish(given, lm, fitted, recipe, (select_r, select_c), reading)

    make_and_save(given, fit)


def _opener(
    recipe: LeastDisturbanceEdit, given: Given, lm: LM, refuse: PromptSet, comply: PromptSet
) -> str:
    """The opener that is named or found; a model without one is told, and edited at the first token alone."""
    from interp.methods.refusal import find_opener

    if recipe.after_opener != AUTO:
        return recipe.after_opener or ""
    found = find_opener(lm, refuse, comply, judge=given.judge)
    click.echo(f"opener: {found!r}" if found else "opener: none, refusals share no beginning")
    return found
