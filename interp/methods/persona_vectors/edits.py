"""Persona vectors as edits: steering at one block or all, and removal from what a model writes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from interp.edits import Edit, ablation
from interp.interventions import Interventions, Strengths, Where, add
from interp.lm import LM
from interp.maths import unit
from interp.methods.persona_vectors.vectors import PersonaVector
from interp.models.ruler import Ruler
from interp.sites import Site
from interp.types import Direction


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


def check(lm: LM, persona: PersonaVector) -> None:
    """Raise PersonaError for vectors of another model's shape."""
    persona.check(Ruler.of(lm.anatomy), lm.d_model)
