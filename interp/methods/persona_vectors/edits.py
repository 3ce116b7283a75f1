"""Persona vectors as edits and as weight deltas: steering at one block or all, and removal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from interp.data import PromptSet
from interp.edits import Edit, ablation
from interp.errors import SiteError
from interp.interventions import Interventions, Strengths, Where, add
from interp.lm import LM
from interp.maths import unit
from interp.methods.persona_vectors.recipe import INCREMENTS, REMOVAL, PersonaEdit
from interp.methods.persona_vectors.vectors import PersonaVector
from interp.models.ruler import Ruler
from interp.sites import Site
from interp.types import Direction, WeightDelta


def steering(
    persona: PersonaVector, site: Site, coefficient: Strengths = 1.0, *, where: Where = "all"
) -> Interventions:
    """``h ← h + α v`` at one site (2507.21509, §3.2); negative coefficients suppress the trait.

    ``lm.to_delta`` gives the weight form at the output of a block at all positions: the bias αv of the last
    matrix of the block. What the authors call "response" is the last prompt token and the response:
    ``steering(…, where=-1) + steering(…, where="response")``.
    """
    return add(site, persona.at(site), coefficient, where=where)


def steering_increments(
    lm: LM,
    persona: PersonaVector,
    coefficient: Strengths = 1.0,
    *,
    blocks: Sequence[int] | None = None,
    where: Where = "all",
) -> Interventions:
    """``h ← h + α (v_ℓ − v_{ℓ−1})`` after several blocks, all by default (2507.21509, J.3).

    Where nothing between the blocks reacts, the sum after block k is α (v_{k+1} − v_0): increments telescope.
    """
    check(lm, persona)
    sites = lm.resid_post if blocks is None else [lm.resid_post[b] for b in blocks]
    rows = persona.increments()
    return add(sites, torch.stack([rows[site.block] for site in sites]), coefficient, where=where)


def removal(lm: LM, persona: PersonaVector, site: Site) -> Edit:
    """The vector's direction at ``site`` removed from the embedding and from every matrix that writes.

    The weight form (``lm.to_delta``) is of rank 1 in each matrix, and unties a tied unembedding.
    """
    check(lm, persona)
    vector = persona.at(site).float()
    direction = Direction(unit(vector), max(site.block, 0), persona.trait, float(vector.norm()))
    return ablation(lm.hf, lm.anatomy, direction, embeddings=True)


def edit_of(lm: LM, persona: PersonaVector, recipe: PersonaEdit) -> Interventions | Edit:
    """The edit that a recipe describes, as hooks. Raises SiteError for layers that there are not."""
    check(lm, persona)
    if recipe.form == INCREMENTS:
        blocks = [layer - 1 for layer in layers_of(persona, recipe)]
        return steering_increments(lm, persona, recipe.coefficient, blocks=blocks)
    (layer,) = layers_of(persona, recipe)
    site = persona.site(layer)
    if recipe.form == REMOVAL:
        return removal(lm, persona, site)
    return steering(persona, site, recipe.coefficient)


def layers_of(persona: PersonaVector, recipe: PersonaEdit) -> list[int]:
    """The paper's layers whose vectors a recipe uses."""
    if recipe.layer is not None:
        return [recipe.layer]
    first, last = recipe.first_layer or 1, recipe.last_layer or persona.n_blocks
    for layer in (first, last):
        persona.site(layer)
    if first > last:
        raise SiteError(f"no layer lies between the first, {first}, and the last, {last}")
    return list(range(first, last + 1))


def as_delta(lm: LM, persona: PersonaVector, recipe: PersonaEdit) -> WeightDelta:
    """The weight form of a recipe's edit; its manifest names trait, layers, coefficient and vectors.

    Raises NotExpressible where there is none: behind a post-norm, and where a block's last matrix is gated.
    """
    if recipe.reduction is not None:
        persona = persona.using(recipe.reduction)
    made = lm.to_delta(edit_of(lm, persona, recipe), **_origin(persona))
    about = {"method": recipe.method, "form": recipe.form, "trait": persona.trait}
    about |= {"reduction": persona.reduction, "layers": layers_of(persona, recipe)}
    if recipe.form != REMOVAL:
        about["coefficient"] = recipe.coefficient
    return replace(made, recipe=about)


def _origin(persona: PersonaVector) -> dict[str, Any]:
    """What a manifest says of the vectors: hash, model, and the questions that they were made on."""
    known = {k: persona.record[k] for k in ("model", "fingerprint") if k in persona.record}
    origin: dict[str, Any] = {"vectors": {"sha256": persona.sha256, **known}}
    trait = persona.record.get("trait")
    questions = trait.get("questions") if isinstance(trait, dict) else None
    if questions:
        origin["seen_prompts"] = sorted(PromptSet(tuple(questions), persona.trait).fingerprints)
    return origin


def check(lm: LM, persona: PersonaVector) -> None:
    """Raise PersonaError for vectors of another model's shape."""
    persona.check(Ruler.of(lm.anatomy), lm.d_model)
