"""``interp edit ablation``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from interp.cli.edits.saving import edit_options, finish, fit_and_save, named
from interp.cli.options import Given
from interp.cli.recipes import read_recipe, recipe_options
from interp.recipes import AblationEdit


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

    def fit(backend: Any, watch: Any) -> Any:
        from interp.methods import refusal

        # The direction alone is taken: response tokens and a behaviour filter would not change it.
        common: dict[str, Any] = {
            "chat": given.chat,
            "batch_size": given.batch_size,
            "watch": watch,
        }
        reading = {"recipe": recipe.direction, "response_tokens": 0, "behaviour_filter": False}
        reading |= {"judge": given.judge, **common}
        fitted = refusal.fit(backend, fit_r, fit_c, **reading)
        grid = refusal.candidates(backend, fitted, "ablation", embeddings=recipe.embeddings)
        fixed = named(
            recipe, direction_block="block", first_block="first_block", strength="strength"
        )
        settings = list(dict.fromkeys(replace(s, **fixed) for s in grid))
        choice = refusal.Choice(settings[0], ())
        if len(settings) > 1:
            selection = refusal.Selection.prepare(backend, fitted, select_r, select_c, **common)
            choice = refusal.choose(selection, settings, watch=watch)
        return choice, finish(given, backend, fitted, choice, (select_r, select_c), reading)

    fit_and_save(given, fit, method="ablation")
