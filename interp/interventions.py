"""Interventions: operators at sites of a running model, at chosen positions, with several strengths at once.

An intervention is a site, an operator and the positions where the operator acts. :func:`add`,
:func:`ablate`, :func:`replace` and :func:`scale` make interventions; ``+`` puts them together, and each acts
on what the ones before left. :func:`interp.edits.to_delta` gives the weight form of those that have one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
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
    row_count,
)
from interp.places import Heads, Place, Places, SitePart, in_a_row
from interp.sites import Site
from interp.types import Direction, TokenBatch

Where: TypeAlias = str | int | Sequence[int]
"""Positions to edit: ``"all"``, ``"prompt"``, ``"response"``, or offsets from the end of the prompt (−1: its
last token, 0: the first token of the response)."""

SPANS = ("all", "prompt", "response")


def at_offsets(where: Where, offsets: Tensor) -> Tensor:
    """Mask in the shape of ``offsets`` of the positions that ``where`` selects.

    offsets: of every position, from the end of its prompt.
    """
    if where == "all":
        return torch.ones_like(offsets, dtype=torch.bool)
    if isinstance(where, str):
        return offsets < 0 if where == "prompt" else offsets >= 0
    return torch.isin(offsets, torch.as_tensor(where, device=offsets.device).reshape(-1))


Strengths: TypeAlias = int | float | Sequence[int | float] | Tensor
"""A number for all prompts; a list, with each of which every prompt runs once; or a tensor ``[prompt]``, one
for each prompt. A list or a tensor of one element is a number."""


@dataclass(frozen=True, slots=True, eq=False)
class StreamAblation:
    """Ablation of a direction or subspace of the stream at a writer's output, before its post-norm if any.

    unit: ``[d_model]``, norm 1, or a basis ``[k, d_model]``, in the coordinates of the stream. strength:
    share that is removed.
    """

    unit: Tensor
    strength: float = 1.0

    def through(self, view: Callable[[Tensor], Tensor]) -> Ablation | SubspaceAblation:
        """The operator in the coordinates of a writer's output; ``view`` maps a stream direction there."""
        if self.unit.ndim == 2:
            return SubspaceAblation(
                torch.stack([view(unit(row)) for row in self.unit]), self.strength
            )
        return Ablation(view(self.unit), self.strength)


@dataclass(frozen=True, slots=True, eq=False)
class Intervention:
    """One operator at one site.

    where: positions at which the operator acts (:data:`Where`). strengths: factors of the operator's change,
    one per copy of the prompts; empty for one copy. Raises SiteError for a ``where`` that selects nothing or
    is unknown.
    """

    site: Site
    operator: Operator | StreamAblation
    where: Where = "all"
    strengths: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        where = self.where
        if isinstance(where, Sequence) and not isinstance(where, str):
            where = tuple(where)
            object.__setattr__(self, "where", where)
        offsets = where if isinstance(where, tuple) else (where,)
        if where not in SPANS and not all(isinstance(each, int) for each in offsets):
            raise SiteError(f"where is one of {', '.join(SPANS)} or offsets, not {where!r}")
        if not offsets:
            raise SiteError(
                "no position asked for; -1 is the last prompt token, 'all' is all of them"
            )

    @property
    def offsets(self) -> tuple[int, ...]:
        """Offsets at which the operator acts; none for a span."""
        if isinstance(self.where, str):
            return ()
        return (self.where,) if isinstance(self.where, int) else tuple(self.where)


@dataclass(frozen=True, slots=True, eq=False)
class Interventions:
    """Interventions that run together; at one site each acts on the result of those before."""

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
    def row_count(self) -> int | None:
        """Number of prompts that values and coefficients are for; None where any number will do."""
        counts = [n for part in self.parts if (n := row_count(part.operator)) is not None]
        return max(counts, default=None)

    def check_positions(self, batch: TokenBatch) -> None:
        """Raise SiteError where an offset is in the response and there is none."""
        longest = 0 if batch.response is None else int(batch.response.max())
        for part in self.parts:
            if late := [offset for offset in part.offsets if offset >= longest]:
                raise SiteError(
                    f"offset {late[0]} at {part.site} is in the response, which has {longest} tokens; "
                    "offsets count from the end of the prompt: -1 is its last token"
                )

    def check_prompts(self, batch: TokenBatch) -> None:
        """Raise SiteError where an intervention has values for prompts of another number or length."""
        for part in self.parts:
            if (count := row_count(part.operator)) not in (None, len(batch)):
                raise SiteError(
                    f"the intervention at {part.site} has one value for each of {count} prompts, and "
                    f"{_count(len(batch))} given; for several strengths of every prompt give a list"
                )
            for given in _replacements(part.operator):
                _check_lengths(part, given, batch)

    @property
    def recipe(self) -> dict[str, Any]:
        """Sites, positions, operators and strengths in JSON values, without vectors."""
        parts = []
        for part in self.parts:
            where = {"site": part.site.hook_name, "where": part.where}
            several = {"strengths": list(part.strengths)} if part.strengths else {}
            parts.append(where | _described(part.operator) | several)
        return {"method": "interventions", "parts": parts}

    @property
    def strengths(self) -> int:
        """Number of strengths, each of which needs a copy of the prompts; 1 without a list of strengths."""
        return max((len(part.strengths) for part in self.parts), default=0) or 1

    def expanded(self, prompts: int) -> Interventions:
        """These interventions for ``strengths × prompts`` rows, ordered by strength, then by prompt."""
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
        """These interventions for some rows of the batch."""
        return Interventions(
            tuple(changed(part, operator=_rows(part.operator, index)) for part in self.parts)
        )


def _replacements(operator: object) -> Iterator[Replace]:
    """Replacements by values of several positions inside an operator."""
    if isinstance(operator, Replace) and operator.values.ndim == 3 and operator.values.shape[1] > 1:
        yield operator
    for inner in (getattr(operator, "operator", None), *getattr(operator, "parts", ())):
        if inner is not None:
            yield from _replacements(inner)


def _check_lengths(part: Intervention, given: Replace, batch: TokenBatch) -> None:
    """Raise SiteError where values are of prompts that are longer or shorter than those of the batch."""
    width = batch.ids.shape[1]
    offsets = torch.arange(width) - batch.prompt_end.unsqueeze(-1)
    real = given.real[:, -width:]
    if real.shape[1] < width:  # the operator says that there are too few
        return
    wrong = (at_offsets(part.where, offsets) & batch.mask.bool() & ~real).any(-1)
    if part.where == "all" and given.mask is not None:
        wrong |= given.mask.sum(-1) != batch.lengths
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise SiteError(
            f"the values at {part.site} are of a prompt of another length than prompt {row + 1}, which has "
            f"{int(batch.lengths[row])} tokens: padding would go to tokens. Patch prompts of equal length, "
            "or choose offsets with where (-1: the last prompt token); for zeros give 0.0"
        )


def _described(operator: Operator | StreamAblation) -> dict[str, Any]:
    """An operator's name and numbers, in JSON values."""
    if isinstance(operator, Part):
        return _described(operator.operator) | {"coordinates": [operator.start, operator.stop]}
    if isinstance(operator, Graded):
        return _described(operator.operator) | {"strengths": operator.coefficients.tolist()}
    name = "Ablation" if isinstance(operator, StreamAblation) else type(operator).__name__
    found = {each.name: getattr(operator, each.name) for each in fields(operator)}
    numbers = {
        key: float(value)
        for key, value in found.items()
        if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
    }
    return {"operator": name} | numbers


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
    """Interventions with any operator, at one site or several.

    strengths: factor of the operator's change (:data:`Strengths`). At :class:`Heads` the operator acts on
    all heads in a row, ``[…, d]``.
    """
    amount = _strengths(strengths)
    several = amount if isinstance(amount, tuple) else ()
    if not isinstance(amount, tuple) and (isinstance(amount, Tensor) or amount != 1.0):
        operator = Graded(operator, torch.as_tensor(amount).reshape(-1))  # type: ignore[arg-type]
    parts = []
    for place in _places(sites):
        site, own = place, operator
        if isinstance(place, SitePart):
            site, own = place.site, Part(operator, place.start, place.stop)  # type: ignore[arg-type]
        elif isinstance(place, Heads):
            site = place.site
        parts.append(Intervention(site, own, where, several))  # type: ignore[arg-type]
    return Interventions(tuple(parts))


def add(
    sites: Places,
    vector: Tensor | Direction,
    coefficient: Strengths = 1.0,
    *,
    where: Where = "all",
) -> Interventions:
    """Interventions ``y ← y + coefficient · vector`` (steering).

    vector: ``[d]`` for all sites, or ``[site, d]`` with one for each; at :class:`Heads` also
    ``[head, d_head]`` and ``[site, head, d_head]``. coefficient: see :data:`Strengths`.
    """
    vectors = vector.vector if isinstance(vector, Direction) else vector
    places = _places(sites)
    amount = _strengths(coefficient)
    graded = 1.0 if isinstance(amount, float) else amount
    vectors = in_a_row(places[0], vectors)
    each = vectors if vectors.ndim == 2 else vectors.expand(len(places), -1)
    if len(each) != len(places):
        raise SiteError(f"{len(each)} vectors for {len(places)} sites; give one, or one for each")
    whole: list[Intervention] = []
    for place, own in zip(places, each, strict=True):
        operator = Addition(own, amount if isinstance(amount, float) else 1.0)
        whole += intervene(place, operator, graded, where=where).parts
    return Interventions(tuple(whole))


def ablate(
    sites: Places,
    direction: Tensor | Direction,
    strength: Strengths = 1.0,
    *,
    where: Where = "all",
) -> Interventions:
    """Interventions that remove the share ``strength`` of the component along a direction, or in a subspace.

    direction: ``[d]`` of any norm, or a basis ``[k, d]`` of rows; at :class:`Heads` also ``[head, d_head]``.
    At a writer's output one direction is a direction of the stream: behind a post-norm the writer is edited
    so that nothing of it is left after the norm.
    """
    vector = direction.vector if isinstance(direction, Direction) else direction
    amount = _strengths(strength)
    fixed, graded = (amount, 1.0) if isinstance(amount, float) else (1.0, amount)
    whole: list[Intervention] = []
    for place in _places(sites):
        operator: Operator | StreamAblation
        own = in_a_row(place, vector).float()
        if isinstance(place, Site) and place.kind == "writer_out":
            operator = StreamAblation(unit(own) if own.ndim == 1 else own, fixed)
        elif own.ndim == 2:
            operator = SubspaceAblation(own, fixed)
        else:
            operator = Ablation(unit(own), fixed)
        whole += intervene(place, operator, graded, where=where).parts
    return Interventions(tuple(whole))


def replace(
    sites: Places, values: float | Tensor | Mapping[Any, Tensor], *, where: Where = "all"
) -> Interventions:
    """Interventions ``y ← values`` (activation patching; zeros or a mean ablate the whole site).

    values: a number; ``[d]``; ``[prompt, d]``; ``[prompt, position, d]``, left-padded; or, with a list of
    offsets as ``where``, ``[prompt, offset, d]``. At :class:`Heads` the last axes may be ``head, d_head``. A
    cache (:class:`interp.readings.Cache`) gives each site its own values in these shapes.

    Values of several positions have to be of prompts of the same lengths. The call that runs the edit checks
    it, by the mask of a cache, and in a tensor by the zeros that stand for padding. Raises SiteError where
    values and offsets differ in number.
    """
    whole: list[Intervention] = []
    for place in _places(sites):
        own = values[place] if isinstance(values, Mapping) else torch.as_tensor(values)
        own, mask = in_a_row(place, own), getattr(values, "mask", None)
        several = isinstance(where, Sequence) and not isinstance(where, str)
        if not several or own.ndim < 3 or mask is not None:
            whole += intervene(place, Replace(own, mask), where=where).parts
            continue
        if own.shape[1] != len(where):
            raise SiteError(f"{own.shape[1]} values for {len(where)} offsets; give one for each")
        for i, offset in enumerate(where):
            whole += intervene(place, Replace(own[:, i]), where=offset).parts
    return Interventions(tuple(whole))


def scale(sites: Places, factors: float | Tensor, *, where: Where = "all") -> Interventions:
    """Interventions ``y ← factors ⊙ y``; zeros mask coordinates.

    factors: a number for all coordinates, or ``[d]``; at :class:`Heads` also ``[head, d_head]`` or
    ``[head, 1]``.
    """
    whole: list[Intervention] = []
    for place in _places(sites):
        operator = Scale(in_a_row(place, torch.as_tensor(factors)))
        whole += intervene(place, operator, where=where).parts
    return Interventions(tuple(whole))


def _strengths(given: Strengths) -> float | tuple[float, ...] | Tensor:
    """A float, a tuple with one number per copy of the prompts, or a tensor ``[prompt]`` or ``[1]``.

    A tensor of one element stays a tensor if it requires gradients. Raises SiteError for any other shape.
    """
    values = torch.as_tensor(given, dtype=torch.float32)
    if values.ndim > 1 or not values.numel():
        raise SiteError(
            f"strengths are a number, a list or one per prompt; these have shape {list(values.shape)}"
        )
    if isinstance(given, Tensor) and given.requires_grad:
        return values.reshape(-1)
    if values.numel() == 1:
        return given if isinstance(given, float) else float(values)
    return values if isinstance(given, Tensor) else tuple(values.tolist())


def _count(prompts: int) -> str:
    return "1 prompt is" if prompts == 1 else f"{prompts} prompts are"


def _places(sites: Places) -> list[Place]:
    if isinstance(sites, str):
        raise SiteError(f"{sites!r} is a name; give sites: lm.places({sites!r})")
    given = sites.values() if isinstance(sites, Mapping) else sites
    if not (places := [sites] if isinstance(sites, Site | SitePart | Heads) else list(given)):
        raise SiteError("no site to intervene at")
    return places
