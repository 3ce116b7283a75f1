"""An edit of refusal as a delta that says what it was fitted and chosen on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from interp.data.prompts import PromptSet
from interp.edits import Edit
from interp.lm import LM
from interp.methods.refusal.fit import Fitted, build
from interp.methods.refusal.learning import learned
from interp.recipes import AblationEdit, LeastDisturbanceEdit
from interp.types import WeightDelta

CLASSES = ("refuse: ", "comply: ")
"""Beginnings of the names under which the prompts of both classes are listed."""


def as_delta(
    lm: LM, fitted: Fitted, edit: Edit, chosen_on: Sequence[PromptSet] = ()
) -> WeightDelta:
    """The edit's weight face, with the prompts that it was fitted on, and chosen on where it was."""
    prompts, refused = dict(fitted.prompts), {"refused_in_fit": fitted.refused}
    if edit.recipe.get("method") == "ablation":  # along a direction of both whole classes alone
        prompts = {name: value for name, value in prompts.items() if name.startswith(CLASSES)}
        refused = {}
    prompts |= {f"chosen: {part.source}": part.sha256 for part in chosen_on}
    judged = {"judge": fitted.judge.name} if chosen_on or refused.get("refused_in_fit") else {}
    provenance = {
        "prompts_sha256": prompts,
        "seen_prompts": sorted({*fitted.seen}.union(*(part.fingerprints for part in chosen_on))),
        **refused,
        **judged,
    }
    return lm.to_delta(edit, **provenance)


def finished(
    lm: LM,
    fitted: Fitted,
    recipe: AblationEdit | LeastDisturbanceEdit,
    chosen_on: Sequence[PromptSet] = (),
) -> WeightDelta:
    """The delta that a recipe without open settings describes, learned where it says so."""
    delta = as_delta(lm, fitted, build(lm, fitted, recipe), chosen_on)
    if isinstance(recipe, LeastDisturbanceEdit) and recipe.learn:
        delta = learned(lm, fitted, delta, recipe.learn, recipe.learning)
    return delta


def rebased(delta: WeightDelta, before: WeightDelta) -> WeightDelta:
    """A delta fitted on a model that already carried ``before``, as one of the untouched base.

    Both are differences of weights, so the updates stay as they are; only the base they name changes.
    """
    return replace(delta, base=before.base)
