"""Fit directions and edits on samples: captured rows in, directions and edits out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interp.edits import Edit, canonical, readable, select_writers, writer_unit
from interp.errors import NoDirection
from interp.lm import LM
from interp.maths import (
    SMALLEST_NORM,
    Ridged,
    best_ridge,
    difference_of_means,
    least_disturbance_probe,
    least_disturbance_probes,
    mean,
    orthogonalise,
    unit,
    weighted,
    winsorise,
)
from interp.operators import LeastDisturbance, Operator, Total
from interp.recipes import AUTO, DirectionRecipe, LeastDisturbanceEdit
from interp.samples import DECISION, OPENER, POOL, RESPONSE, Samples
from interp.sites import Site
from interp.types import Direction


def directions(
    samples: Samples, recipe: DirectionRecipe | None = None, place: str = DECISION
) -> dict[int, Direction]:
    """Difference-of-means direction at the output of every block that was captured in both classes.

    Blocks where the classes do not differ are left out. Raises NoDirection when none is left.
    """
    recipe = recipe or DirectionRecipe()
    found = {}
    for site in samples.sites(place):
        if site.kind != "resid_post":
            continue
        pos, neg = (
            winsorise(samples.rows(site, positive, place).float(), recipe.winsor)
            for positive in (True, False)
        )
        raw = difference_of_means(pos, neg)
        if raw.norm() < SMALLEST_NORM:
            continue
        vector = orthogonalise(raw, mean(neg)) if recipe.orthogonal_to_comply else raw
        source = "difference of means" + (
            ", orthogonal to the comply mean" if recipe.orthogonal_to_comply else ""
        )
        found[site.block] = Direction(unit(vector).float(), site.block, source, raw.norm().item())
    if not found:
        raise NoDirection(
            "the two classes do not differ at any block; are the prompt sets the same?"
        )
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Probes:
    """Least-disturbance probes of writers, each solved once per settings.

    samples: rows of the writers' inputs. Σ is made, factorised and dropped writer by writer; what is kept
    is one vector per shift.
    """

    samples: Samples
    _found: dict[tuple[Any, ...], Tensor] = field(default_factory=dict, init=False, repr=False)

    def shift(self, site: Site, place: str = DECISION) -> Tensor:
        """``Δa = E_positive[a] − E_negative[a]`` at a place, float64 ``[d_in]``."""
        pos, neg = (self.samples.rows(site, positive, place) for positive in (True, False))
        return difference_of_means(pos, neg)

    def of(self, site: Site, recipe: LeastDisturbanceEdit) -> Tensor:
        """One probe for every place where the recipe acts, float64 ``[place, d_in]``.

        Two probes are solved together, so that neither shift moves the other.
        """
        places = places_of(recipe)
        key = (site, places, recipe.ridge, recipe.response_weight, recipe.opener_weight)
        if key not in self._found:
            shifts = torch.stack([self.shift(site, place) for place in places])
            metric = self.metric(site, recipe)
            if len(places) > 1 and (shifts.norm(dim=-1) >= SMALLEST_NORM).all():
                solved = least_disturbance_probes(shifts, metric)
            else:
                solved = torch.stack([least_disturbance_probe(s, metric) for s in shifts])
            self._found[key] = solved
        return self._found[key]

    def metric(self, site: Site, recipe: LeastDisturbanceEdit) -> Ridged:
        """Σ of the negative class, factorised: decision rows, and weighted response and opener rows."""
        decisions = self.samples.rows(site, False)
        if self.samples.holds(POOL):
            decisions = torch.cat([decisions, self.samples.rows(site, False, POOL)])
        parts = [(decisions, 1.0)]
        if self.samples.holds(RESPONSE):
            parts.append((self.samples.rows(site, False, RESPONSE), recipe.response_weight))
        if OPENER in places_of(recipe):
            parts.append((self.samples.rows(site, False, OPENER), recipe.opener_weight))
        ridge = recipe.ridge
        if ridge == AUTO:
            ridge = best_ridge(self.shift(site), decisions)
        return Ridged.of(weighted(parts), float(ridge))


def places_of(recipe: LeastDisturbanceEdit) -> tuple[str, ...]:
    """The places whose shift an edit removes."""
    return (DECISION, OPENER) if recipe.after_opener else (DECISION,)


def least_disturbance(
    lm: LM, probes: Probes, along: Mapping[str, Direction], recipe: LeastDisturbanceEdit
) -> Edit:
    """The least-disturbance edit of every block writer, closed form, no search.

    along: the direction that is removed at every place of :func:`places_of`.
    Per writer and place: ``ΔW = −α (u·WΔa) u qᵀ`` (see :mod:`interp.operators.least_disturbance`), α the
    strength at that place. Writers behind a post-norm act on the direction seen through its gain; the norm
    itself stays, so there the shift is exact before the norm and first-order after it.
    """
    model, n_blocks = lm.hf, lm.n_blocks
    strengths = {DECISION: recipe.strength, OPENER: recipe.opener_strength}
    blocks = tuple(range(recipe.first_block, n_blocks))
    operators: dict[str, Operator] = {}
    for writer in select_writers(lm.anatomy, blocks):
        share = recipe.attention if writer.kind == "attention" else 1.0
        if not share:
            continue
        site = Site.writer_in(writer.block, writer.name)
        weight = canonical(readable(model, writer.weight), writer.axes).cpu()
        shape = (weight.shape[0], -1) if writer.fused else (-1,)
        made = []
        for place, probe in zip(places_of(recipe), probes.of(site, recipe), strict=True):
            u = writer_unit(model, writer, along[place].vector).cpu()
            moved = _written_shift(u, weight, probes.shift(site, place))
            amount = share * strengths[place] * moved
            made.append(LeastDisturbance(u, probe.reshape(shape).float(), amount))
        operators[writer.weight] = made[0] if len(made) == 1 else Total(tuple(made))
    return Edit(operators, recipe={"method": "least-disturbance", "blocks": list(blocks)})


def _written_shift(u: Tensor, weight: Tensor, shift: Tensor) -> float:
    """``u·WΔa``, the product with Δa in float64; fused experts sum over the expert axis."""
    rows = torch.einsum("d,...df->...f", u, weight.to(u))
    return (rows.reshape(-1).double() @ shift.double()).item()
