"""Many steered settings in one batch, and vectors that a persona vector is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add as joined

import torch
from jaxtyping import Float
from torch import Tensor

from interp.backends.protocol import AnyEdit
from interp.data.text import neutral_passages
from interp.errors import PersonaError
from interp.estimators import RandomDirection
from interp.evaluate.divergence import neutral_batch, passage_nats
from interp.interventions import Interventions, add
from interp.lm import LM
from interp.sites import Site
from interp.watching import unwatched

Vector = Float[Tensor, " d_model"]
Vectors = Float[Tensor, "n d_model"]

FACTORS = (0.5, 1.0, 2.0, 4.0)
"""Multiples of a coefficient between which that of equal damage is sought."""
PASSAGES = 6
"""Passages of neutral text on which damage is compared."""


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """One vector added at one site, ``h ← h + coefficient · vector``, at all positions.

    vector_name: what the vector is, in words.
    """

    site: Site
    vector: Vector
    coefficient: float = 1.0
    vector_name: str = "persona vector"


def together(settings: Sequence[Setting]) -> Interventions:
    """All settings as strengths of one edit: strength k of a result is setting k.

    ``lm.generate(questions, together(settings))`` answers every question under every setting in batches of
    ``lm.batch_size``, in place of one call for each setting.
    """
    if not settings:
        raise PersonaError("no setting to run; name at least one")
    parts = []
    for i, setting in enumerate(settings):
        strengths = [setting.coefficient if i == k else 0.0 for k in range(len(settings))]
        parts.append(add(setting.site, setting.vector, strengths))
    return reduce(joined, parts)


def random_vectors(vector: Vector, n: int, seed: int = 0) -> Vectors:
    """Random directions with the norm of ``vector``, of the seeds from ``seed`` on."""
    row, zero = vector.float()[None], torch.zeros(1, len(vector))
    drawn = [RandomDirection(seed + i).fit(row, zero).vector_ for i in range(n)]
    return torch.stack(drawn)


def shuffled_vectors(differences: Float[Tensor, "pair d_model"], n: int, seed: int = 0) -> Vectors:
    """Means of the pairs' differences under random signs, with the norm of the mean without.

    differences: positive less negative of every pair. A random sign exchanges the labels of a pair, so that
    such a vector has all that persona vectors of these responses have but the trait. Signs are balanced: half
    of the pairs are exchanged.
    """
    generator = torch.Generator().manual_seed(seed)
    signs = torch.ones(len(differences))
    signs[: len(signs) // 2] = -1
    rows = torch.stack([signs[torch.randperm(len(signs), generator=generator)] for _ in range(n)])
    found = rows @ differences.float() / len(differences)
    norms = found.norm(dim=-1, keepdim=True)
    if not bool(norms.all()):
        raise PersonaError("a shuffled vector is zero: two pairs at least are needed")
    return found * (differences.float().mean(0).norm() / norms)


def neutral_nll(lm: LM, setting: Setting | None, passages: Sequence[str] | None = None) -> float:
    """NLL per token of neutral text in nats with a setting in place; None: of the unedited model.

    passages: texts; None for the first :data:`PASSAGES` that are shipped.
    """
    passages = neutral_passages()[:PASSAGES] if passages is None else passages
    edit = None if setting is None else add(setting.site, setting.vector, setting.coefficient)
    return passage_nll(lm, passages, edit)


def passage_nll(lm: LM, passages: Sequence[str], edit: AnyEdit = None) -> float:
    """NLL per token of passages in nats."""
    nats, tokens = passage_nats(lm.using(watch=unwatched), neutral_batch(lm, passages), edit)
    return float(nats.sum() / tokens.sum())


def of_equal_damage(
    lm: LM, setting: Setting, nll: float, passages: Sequence[str] | None = None
) -> Setting:
    """The setting with the coefficient at which neutral text has the NLL ``nll``, in nats per token.

    The coefficient is interpolated between multiples of the setting's own (:data:`FACTORS`), linearly in its
    logarithm, and rounded to three digits; beyond them the nearest one is taken.
    """
    import numpy as np

    tried = [replace(setting, coefficient=f * setting.coefficient) for f in FACTORS]
    rising = np.maximum.accumulate([neutral_nll(lm, each, passages) for each in tried])
    factor = float(np.exp(np.interp(nll, rising, np.log(FACTORS))))
    return replace(setting, coefficient=float(f"{factor * setting.coefficient:.3g}"))
