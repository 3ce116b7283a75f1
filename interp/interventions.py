"""Interventions: operators at sites of a running model, at chosen positions, with several strengths at once.

An intervention is a site, an operator and the positions where the operator acts. :func:`add`,
:func:`ablate`, :func:`replace` and :func:`scale` make interventions; ``+`` puts them together, and each acts
on what the ones before left. :func:`interp.edits.to_delta` gives the weight form of those that have one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import Any, TypeAlias

import torch
from torch import Tensor

from interp.errors import SiteError
from interp.maths import unit
from interp.operators import (
    Ablation,
    Addition,
    Graded,
    Operator,
    Part,
    Replace,
    Scale,
    SubspaceAblation,
)
from interp.sites import Site
from interp.types import Direction

Where: TypeAlias = str | int | tuple[int, ...]
"""``"all"``; ``"prompt"`` or ``"response"``; offsets from the end of the prompt (−1: its last token, 0: the
first token of the response)."""

SPANS = ("all", "prompt", "response")


@dataclass(frozen=True, slots=True)
class SitePart:
    """Some coordinates of a site: a head of ``z``, a neuron, a channel."""

    site: Site
    start: int
    stop: int


Place: TypeAlias = Site | SitePart
Places: TypeAlias = Place | Sequence[Place]
Strengths: TypeAlias = int | float | Sequence[int | float] | Tensor
"""A number; a list, which runs every prompt once for each; a tensor ``[prompt]``, one for every prompt."""


@dataclass(frozen=True, slots=True, eq=False)
class StreamAblation:
    """Ablation of a direction of the stream, as the writer behind a post-norm has to do it.

    unit: ``[d_model]``, norm 1, in the coordinates of the stream.
    """

    unit: Tensor
    strength: float = 1.0

    def through(self, view: Callable[[Tensor], Tensor]) -> Ablation:
        """The operator in the coordinates of a writer's output; ``view`` maps a stream direction there."""
        return Ablation(view(self.unit), self.strength)


@dataclass(frozen=True, slots=True, eq=False)
class Intervention:
    """One operator at one site.

    where: positions at which the operator acts (:data:`Where`). strengths: factors of what the operator
    changes, one per copy of the prompts; empty for one copy.
    """

    site: Site
    operator: Operator | StreamAblation
    where: Where = "all"
    strengths: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        offsets = (self.where,) if isinstance(self.where, int) else self.where
        if isinstance(offsets, str) and offsets not in SPANS:
            raise SiteError(f"where is one of {', '.join(SPANS)} or offsets, not {self.where!r}")
        if not len(offsets):
            raise SiteError(
                "no position asked for; -1 is the last prompt token, 'all' is all of them"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Interventions:
    """Interventions that run together, in their order."""

    parts: tuple[Intervention, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise SiteError("no intervention: the sites are empty")
        counts = {len(part.strengths) for part in self.parts if part.strengths}
        if len(counts) > 1:
            raise SiteError(
                f"interventions with {' and '.join(map(str, sorted(counts)))} strengths cannot run in one "
                "batch; give each as many strengths"
            )

    def __add__(self, other: Interventions) -> Interventions:
        return Interventions((*self.parts, *other.parts))

    def __iter__(self) -> Iterator[Intervention]:
        return iter(self.parts)

    @property
    def recipe(self) -> dict[str, Any]:
        """What the interventions do, in JSON values."""
        parts = [
            {"site": p.site.hook_name, "operator": type(p.operator).__name__, "where": p.where}
            for p in self.parts
        ]
        return {"method": "interventions", "parts": parts}

    @property
    def strengths(self) -> int:
        """Copies of every prompt that the strengths ask for; 1 without strengths."""
        return max((len(part.strengths) for part in self.parts), default=0) or 1

    def expanded(self, prompts: int) -> Interventions:
        """The same for a batch of ``strengths × prompts`` rows, all prompts at the first strength first."""
        copies = torch.arange(self.strengths * prompts)
        parts = []
        for part in self.parts:
            operator = (
                _rows(part.operator, copies % prompts) if self.strengths > 1 else part.operator
            )
            if part.strengths:
                each = torch.tensor(part.strengths, dtype=torch.float32)[copies // prompts]
                operator = Graded(operator, each)  # type: ignore[arg-type]
            parts.append(changed(part, operator=operator, strengths=()))
        return Interventions(tuple(parts))

    def rows(self, index: Tensor) -> Interventions:
        """The same for some rows of the batch."""
        return Interventions(
            tuple(changed(part, operator=_rows(part.operator, index)) for part in self.parts)
        )


def _rows(operator: Operator | StreamAblation, index: Tensor) -> Operator | StreamAblation:
    rows = getattr(operator, "rows", None)
    return operator if rows is None else rows(index)


def intervene(
    sites: Places,
    operator: Operator | StreamAblation,
    strengths: Strengths = 1.0,
    *,
    where: Where = "all",
) -> Interventions:
    """Any operator at one site or several.

    strengths: factor of what the operator changes (:data:`Strengths`).
    """
    if isinstance(strengths, Tensor) and strengths.ndim:
        operator, several = Graded(operator, strengths.float()), ()  # type: ignore[arg-type]
    elif isinstance(strengths, Sequence):
        several = tuple(float(s) for s in strengths)
    else:
        several = () if float(strengths) == 1.0 else (float(strengths),)
    parts = []
    for place in _places(sites):
        site, own = place, operator
        if isinstance(place, SitePart):
            site, own = place.site, Part(operator, place.start, place.stop)  # type: ignore[arg-type]
        parts.append(Intervention(site, own, where, several))  # type: ignore[arg-type]
    return Interventions(tuple(parts))


def add(
    sites: Places,
    vector: Tensor | Direction,
    coefficient: Strengths = 1.0,
    *,
    where: Where = "all",
) -> Interventions:
    """``y ← y + coefficient · vector`` (steering).

    vector: ``[d]``, or ``[site, d]`` with one for every site. coefficient: see :data:`Strengths`.
    """
    vectors = vector.vector if isinstance(vector, Direction) else vector
    places = _places(sites)
    each = vectors if vectors.ndim == 2 else vectors.expand(len(places), -1)
    if len(each) != len(places):
        raise SiteError(f"{len(each)} vectors for {len(places)} sites; give one, or one for each")
    whole: list[Intervention] = []
    for place, own in zip(places, each, strict=True):
        if isinstance(coefficient, int | float):
            made = intervene(place, Addition(own, float(coefficient)), where=where)
        else:
            made = intervene(place, Addition(own), coefficient, where=where)
        whole += made.parts
    return Interventions(tuple(whole))


def ablate(
    sites: Places,
    direction: Tensor | Direction,
    strength: Strengths = 1.0,
    *,
    where: Where = "all",
) -> Interventions:
    """Remove the share ``strength`` of what lies along a direction, or in the span of several.

    direction: ``[d]`` of any length, or ``[k, d]``. At a writer's output one direction is a direction of the
    stream: behind a post-norm the writer is edited so that nothing of it is left after the norm.
    """
    vector = direction.vector if isinstance(direction, Direction) else direction
    fixed = float(strength) if isinstance(strength, int | float) else 1.0
    graded = 1.0 if isinstance(strength, int | float) else strength
    whole: list[Intervention] = []
    for place in _places(sites):
        operator: Operator | StreamAblation
        if vector.ndim == 2:
            operator = SubspaceAblation(vector.float(), fixed)
        elif isinstance(place, Site) and place.kind == "writer_out":
            operator = StreamAblation(unit(vector.float()), fixed)
        else:
            operator = Ablation(unit(vector.float()), fixed)
        whole += intervene(place, operator, graded, where=where).parts
    return Interventions(tuple(whole))


def replace(sites: Places, values: Tensor, *, where: Where = "all") -> Interventions:
    """``y ← values`` (activation patching; zeros or a mean ablate the whole site).

    values: ``[d]``; ``[prompt, d]``; or, at offsets, ``[prompt, offset, d]``.
    """
    if isinstance(where, tuple) and values.ndim == 3:
        if values.shape[1] != len(where):
            raise SiteError(f"{values.shape[1]} values for {len(where)} offsets; give one for each")
        parts = [replace(sites, values[:, i], where=offset) for i, offset in enumerate(where)]
        return Interventions(tuple(p for made in parts for p in made.parts))
    return intervene(sites, Replace(values), where=where)


def scale(sites: Places, factors: float | Tensor, *, where: Where = "all") -> Interventions:
    """``y ← factors ⊙ y``; zeros mask coordinates, a number scales the whole site.

    factors: a number or ``[d]``.
    """
    return intervene(sites, Scale(torch.as_tensor(factors)), where=where)


def _places(sites: Places) -> list[Place]:
    places = [sites] if isinstance(sites, Site | SitePart) else list(sites)
    if not places:
        raise SiteError("no site to intervene at")
    return places
