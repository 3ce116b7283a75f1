"""Edits of refusal as deltas that say what they were fitted and chosen on, and their random controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from interp.data.prompts import SIDES, PromptSet
from interp.edits import Edit
from interp.errors import InterpError
from interp.lm import LM
from interp.maths import unit
from interp.methods.refusal.fit import Fitted, build
from interp.methods.refusal.learning import learned
from interp.operators import LeastDisturbance
from interp.recipes import AblationEdit, LeastDisturbanceEdit
from interp.types import LowRank, Shift, Update, WeightDelta


def as_delta(
    lm: LM, fitted: Fitted, edit: Edit, chosen_on: Sequence[PromptSet] = ()
) -> WeightDelta:
    """The edit's weight face, with the prompts that it was fitted on, and chosen on where it was."""
    read, refused = fitted.read, {"refused_in_fit": fitted.refused}
    hashed = read
    if edit.recipe.get("method") == "ablation":  # along a direction of both whole classes alone
        hashed, refused = tuple(each for each in read if each[0] in SIDES), {}
    seen = [prompts for _, prompts in read]
    prompts = {f"{role}: {each.source}": each.sha256 for role, each in hashed}
    prompts |= {f"chosen: {part.source}": part.sha256 for part in chosen_on}
    judged = {"judge": fitted.judge.name} if chosen_on or refused.get("refused_in_fit") else {}
    fingerprints = frozenset[str]().union(*(each.fingerprints for each in (*seen, *chosen_on)))
    provenance = {"prompts_sha256": prompts, "seen_prompts": sorted(fingerprints)}
    return lm.to_delta(edit, **provenance, **refused, **judged)


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


def random_direction(edit: Edit, *, seed: int = 0) -> Edit:
    """The same least-disturbance updates along one random direction: equal norm at every writer.

    Raises InterpError for an edit of another method.
    """
    generator = torch.Generator().manual_seed(seed)
    operators = {}
    drawn: torch.Tensor | None = None
    for name, operator in edit.writers.items():
        if not isinstance(operator, LeastDisturbance):
            raise InterpError("a random direction is defined for least-disturbance edits")
        if drawn is None:
            drawn = unit(torch.randn(operator.unit.shape, generator=generator))
        operators[name] = replace(operator, unit=drawn)
    return Edit(operators, recipe={"method": "random direction of equal norm", "seed": seed})


def random_control(delta: WeightDelta, *, seed: int = 0) -> WeightDelta:
    """The delta with everything that it writes turned by one random rotation of the stream.

    Every writer's update keeps its norm, its rank and its input directions; writers that wrote one
    direction write one other direction. Biases are turned along. Raises InterpError for updates that are
    not low-rank or do not write one stream.
    """
    widths = {u.b.shape[-2] for u in delta.updates.values() if isinstance(u, LowRank)}
    if len(widths) != 1:
        raise InterpError("the random control needs updates of weights that all write one stream")
    width = widths.pop()
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q

    def turned(update: Update) -> Update:
        if isinstance(update, Shift):
            return Shift((update.value.double() @ turn.T).to(update.value))
        return replace(update, b=(turn @ update.b.double()).to(update.b))

    updates = {name: turned(update) for name, update in delta}
    made = {"method": "the edit turned by a random rotation", "seed": seed}
    return replace(delta, updates=updates, recipe={**made, "of": dict(delta.recipe)})
