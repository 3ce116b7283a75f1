"""Fit directions and edits of a model: activations in, edits out.

Everything is read at the decision position (the last prompt token); statistics of response tokens can
be added for the least-disturbance edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from interp.edits import Edit, canonical, readable, select_writers, writer_unit
from interp.errors import NoDirection, SiteError
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
from interp.recipes import DirectionRecipe
from interp.sites import Site
from interp.types import Direction, TokenBatch


@dataclass(frozen=True, slots=True)
class LeastDisturbanceRecipe:
    """The least-disturbance edit.

    alpha: share of the class difference removed. ridge: ε in units of the mean diagonal of E[aaᵀ]; None
    takes for each writer the one that moves left-out comply rows least. blocks: None for all.
    spoken_weight: how much the response tokens of comply prompts count in Σ, where those were captured,
    beside a weight of 1 for the decision position; prose_weight: likewise what the model writes of its own
    (:func:`interp.methods.refusal.written`); opened_weight: likewise comply prompts once the opener has been
    said. attention: how much of alpha the attention writers carry; 1 for as much as the MLPs, 0 for none.
    opened: share of the class difference removed once the opener of a refusal has been said, where that was
    read; above 1 it is reversed.
    """

    alpha: float = 0.8
    ridge: float | None = 0.02
    blocks: tuple[int, ...] | None = None
    spoken_weight: float = 0.05
    attention: float = 1.0
    opened: float = 0.0
    prose_weight: float = 0.1
    opened_weight: float = 0.05


def directions(
    refuse: dict[Site, Tensor], comply: dict[Site, Tensor], recipe: DirectionRecipe | None = None
) -> dict[int, Direction]:
    """Difference-of-means direction at the output of every block captured in both classes.

    Blocks where the classes do not differ are left out. Raises NoDirection when none is left.
    """
    recipe = recipe or DirectionRecipe()
    found = {}
    for site in refuse:
        if site.kind != "resid_post":
            continue
        pos, neg = (winsorise(x[site].float(), recipe.winsor) for x in (refuse, comply))
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


@dataclass(frozen=True, eq=False)
class WriterStatistics:
    """Inputs of every block writer at the decision position, per class, ``{name: [n, d_in]}``.

    extra: comply rows of further prompts; spoken: rows of response tokens; prose: rows with the second
    moment of what the model writes of its own. All three join the second moment only. opened: the same
    classes read once the opener of a refusal has been said.
    """

    refuse: Mapping[str, Tensor]
    comply: Mapping[str, Tensor]
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    spoken: Mapping[str, Tensor] = field(default_factory=dict)
    opened: WriterStatistics | None = None
    prose: Mapping[str, Tensor] = field(default_factory=dict)
    _metrics: dict[tuple[Any, ...], Ridged] = field(default_factory=dict, init=False, repr=False)

    def shift(self, name: str) -> Tensor:
        """``Δa = E_refuse[a] − E_comply[a]`` in float64, ``[d_in]``."""
        return difference_of_means(self.refuse[name], self.comply[name])

    def metric(self, name: str, recipe: LeastDisturbanceRecipe, opened: bool = False) -> Ridged:
        """Σ of a writer; factorised once per recipe, whatever is shifted. opened: with comply rows after
        the opener."""
        weights = (recipe.spoken_weight, recipe.prose_weight, recipe.opened_weight * opened)
        key = (name, recipe.ridge, *weights)
        if key not in self._metrics:
            after = self.opened.comply if self.opened is not None else {}
            beside = zip((self.spoken, self.prose, after), weights, strict=True)
            parts = [(rows[name], weight) for rows, weight in beside if name in rows and weight > 0]
            ridge = recipe.ridge
            if ridge is None:
                ridge = best_ridge(self.shift(name), self.decisions(name))
            joined = weighted([(self.decisions(name), 1.0), *parts])
            self._metrics[key] = Ridged.of(joined, ridge)
        return self._metrics[key]

    def used(self, recipe: LeastDisturbanceRecipe, opened: bool) -> dict[str, Any]:
        """The values of ``recipe`` that an edit of these statistics depends on, in JSON values.

        opened: whether the edit also acts after the opener of a refusal.
        """
        ridge = "auto" if recipe.ridge is None else recipe.ridge
        found = {"strength": recipe.alpha, "ridge": ridge, "attention": recipe.attention}
        if self.spoken:
            found["spoken_weight"] = recipe.spoken_weight
        if self.prose:
            found["prose_weight"] = recipe.prose_weight
        if opened:
            found |= {"opened": recipe.opened, "opened_weight": recipe.opened_weight}
        return found

    def probe(self, name: str, recipe: LeastDisturbanceRecipe) -> Tensor:
        """``q`` of a writer (float64, ``[d_in]``)."""
        return least_disturbance_probe(self.shift(name), self.metric(name, recipe))

    def probes(self, name: str, recipe: LeastDisturbanceRecipe) -> Tensor:
        """The two probes of a writer, for the shifts of both places (float64, ``[2, d_in]``)."""
        shifts = torch.stack([self.shift(name), after(self).shift(name)])
        metric = self.metric(name, recipe, True)
        if (shifts.norm(dim=-1) < SMALLEST_NORM).any():  # nothing to move at one place
            return torch.stack([least_disturbance_probe(shift, metric) for shift in shifts])
        return least_disturbance_probes(shifts, metric)

    def decisions(self, name: str) -> Tensor:
        """Comply rows at the decision position, those of further prompts included, ``[n, d_in]``."""
        rows = self.comply[name]
        return torch.cat([rows, self.extra[name]]) if name in self.extra else rows

    def refusing(
        self, refuse: Mapping[str, Tensor], opened: Mapping[str, Tensor]
    ) -> WriterStatistics:
        """The same comply side, and Σ as far as it is known, with other rows of requests at both places."""
        found = replace(self, refuse=refuse, opened=replace(after(self), refuse=opened))
        found._metrics.update(self._metrics)
        return found


def after(stats: WriterStatistics) -> WriterStatistics:
    """What was read after the opener. SiteError where nothing was."""
    if stats.opened is None:
        raise SiteError(
            'nothing was read after the opener of a refusal; name it when fitting (opener="I\'m")'
        )
    return stats.opened


def response_statistics(
    lm: LM, comply: TokenBatch, sites: Sequence[Site], tokens: int
) -> dict[str, Tensor]:
    """Writer inputs over the first ``tokens`` response tokens of comply prompts, ``{name: [n, d_in]}``."""
    spoken = comply.extended(lm.generate(comply, tokens=tokens).ids)
    found = lm.activations(spoken, sites, at=range(tokens))
    return {site.name: rows.flatten(0, 1) for site, rows in found.items()}


def least_disturbance(
    lm: LM,
    stats: WriterStatistics,
    direction: Direction,
    recipe: LeastDisturbanceRecipe | None = None,
    after_opener: Direction | None = None,
) -> Edit:
    """The least-disturbance edit of every block writer, closed form, no search.

    Per writer: ``ΔW = −α (u·WΔa) u qᵀ`` (see :mod:`interp.operators.least_disturbance`). Writers behind a
    post-norm act on the direction seen through its gain; the norm itself stays, so there the shift is
    exact before the norm and first-order after it.

    With ``after_opener`` a second shift is removed as well, by the share ``recipe.opened``: that between
    the classes once the opener of a refusal has been said, along this direction read there. The two probes
    are solved together (:func:`interp.maths.least_disturbance_probes`), so neither shift moves the other.
    """
    recipe = recipe or LeastDisturbanceRecipe()
    places = [(stats, direction, recipe.alpha)]
    if after_opener is not None:
        places.append((after(stats), after_opener, recipe.opened))
    operators: dict[str, Operator] = {}
    for writer in select_writers(lm.anatomy, recipe.blocks):
        if writer.kind == "attention" and not recipe.attention:
            continue
        if writer.name not in stats.refuse:
            raise SiteError(f"no statistics for {writer.name}; capture them for all writers")
        solve = stats.probe if after_opener is None else stats.probes
        probes = solve(writer.name, recipe)
        weight = canonical(readable(lm.hf, writer.weight), writer.axes).cpu()
        share = recipe.attention if writer.kind == "attention" else 1.0
        shape = (weight.shape[0], -1) if writer.fused else (-1,)
        made = []
        for (read, along, alpha), probe in zip(
            places, probes.reshape(len(places), -1), strict=True
        ):
            u = writer_unit(lm.hf, writer, along.vector).cpu()
            amount = share * alpha * _written_shift(u, weight, read.shift(writer.name))
            made.append(LeastDisturbance(u, probe.reshape(shape).float(), amount))
        operators[writer.weight] = made[0] if len(made) == 1 else Total(tuple(made))
    opened = after_opener is not None
    blocks = list(range(lm.n_blocks) if recipe.blocks is None else recipe.blocks)
    used = {"blocks": blocks, "direction_block": direction.block, **stats.used(recipe, opened)}
    return Edit(operators, recipe={"method": "least-disturbance", **used})


def _written_shift(u: Tensor, weight: Tensor, shift: Tensor) -> float:
    """``u·WΔa``, the products in float64; fused experts sum over the expert axis."""
    rows = torch.einsum("d,...df->...f", u, weight.to(u))
    return (rows.reshape(-1).double() @ shift.double()).item()
