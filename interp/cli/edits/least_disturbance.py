"""``interp edit least-disturbance``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from interp.cli.edits.saving import chosen, edit_options, finish, fit_and_save, named
from interp.cli.options import Given, pool_option
from interp.cli.recipes import read_recipe, recipe_options
from interp.recipes import AUTO, LeastDisturbanceEdit

if TYPE_CHECKING:
    from interp.data import PromptSet
    from interp.lm import LM
    from interp.methods.refusal import Choice, Fitted, Setting
    from interp.types import WeightDelta

PROSE = 200
"""Prompts whose responses count as prose where the edit acts after an opener as well."""


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

    def fit(lm: LM) -> tuple[Choice, WeightDelta]:
        from interp.methods import refusal

        opener = _opener(recipe, given, lm, fit_r, fit_c)
        pool = given.pool(fit_r, select_r, select_c)
        reading: dict[str, Any] = {
            "recipe": recipe.direction, "response_tokens": recipe.response_tokens,
            "behaviour_filter": not recipe.all_requests, "opener": opener, "judge": given.judge,
        }  # fmt: skip
        prose = _prose(recipe, pool or fit_c, opener)
        fitted = refusal.fit(lm, fit_r, fit_c, pool=pool, prose=prose, **reading)
        choice = _choose(recipe, lm, fitted, (select_r, select_c))
        return choice, finish(lm, fitted, choice, (select_r, select_c), reading)

    fit_and_save(given, fit, method="least-disturbance")


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


def _prose(recipe: LeastDisturbanceEdit, prompts: PromptSet, opener: str) -> PromptSet | None:
    """Prompts, spread evenly, whose responses the edit keeps unchanged."""
    count = recipe.prose
    if count is None:
        count = PROSE if opener else 0
    return prompts.spread(count) if count and recipe.prose_weight else None


def _settings(recipe: LeastDisturbanceEdit, lm: LM, fitted: Fitted) -> list[Setting]:
    """What the recipe leaves open, as candidates."""
    from interp.methods.refusal import candidates
    from interp.methods.refusal.choose import OPENED_RIDGE, opened_candidates
    from interp.methods.refusal.learning import REFUSAL_WEIGHT

    fixed: dict[str, Any] = {
        "spoken_weight": recipe.response_weight,
        "prose_weight": recipe.prose_weight,
        "opened_weight": recipe.opener_weight,
    }
    if recipe.ridge is not None:
        fixed["ridge"] = None if recipe.ridge == AUTO else recipe.ridge
    names = {"direction_block": "block", "first_block": "first_block", "strength": "strength"}
    names["attention"] = "attention"
    if fitted.opened is None:
        grid = candidates(lm, fitted, "least-disturbance", **fixed)
    else:
        fixed.setdefault("ridge", OPENED_RIDGE)
        names |= {"opened": "opener_strength", "again": "refit_strength", "worth": "learn"}
        grid = opened_candidates(lm, fitted, "least-disturbance", worth=REFUSAL_WEIGHT, **fixed)
    return list(dict.fromkeys(replace(s, **named(recipe, **names)) for s in grid))


def _choose(
    recipe: LeastDisturbanceEdit,
    lm: LM,
    fitted: Fitted,
    select: tuple[PromptSet, PromptSet],
) -> Choice:
    """The setting that the recipe names, or the best of those it leaves open."""
    choice = chosen(lm, fitted, _settings(recipe, lm, fitted), select)
    if fitted.opened is None and recipe.learn:
        # To learn each of so many candidates would take hours.
        choice = replace(choice, setting=replace(choice.setting, worth=recipe.learn))
    return choice
