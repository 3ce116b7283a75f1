"""``interp edit ablation``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from interp.cli.edits.saving import Made, edit_options, finish, make_and_save
from interp.cli.options import Given
from interp.cli.recipes import read_recipe, recipe_options
from interp.recipes import AblationEdit

if TYPE_CHECKING:
    from interp.lm import LM


@click.command(epilog="Example: interp edit ablation --model smollm2 --out my-delta")
@recipe_options(AblationEdit)
@edit_options
def command(**values: Any) -> None:
    """Ablate a direction in every writer: fit on the fit split, choose on the select split, save a delta.

    Name --block, --first-block and --strength to choose nothing. With --delta the edit is fitted on the model
    with that delta in it, and what is saved is the sum of both.
    """
    recipe = read_recipe(AblationEdit, values)
    given = Given(values)
    fit_r, fit_c, select_r, select_c = given.fit_and_select()

    def fit(lm: LM) -> Made:
        from interp.methods import refusal

        # The direction alone is taken, which a behaviour filter would not change.
        reading: dict[str, Any] = {
            "recipe": recipe.direction, "all_requests": True, "judge": given.judge,
        }  # fmt: skip
        fitted = refusal.fit(lm, fit_r, fit_c, **reading)
        return finish(given, lm, fitted, recipe, (select_r, select_c), reading)

    make_and_save(given, fit)
