"""Every edit that the frontier compares, each with the settings among which the select split chooses."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from interp.edits import Edit, ablation, canonical, readable, select_writers, writer_unit
from interp.lm import LM
from interp.methods.heretic import Kernel
from interp.methods.refusal import Fitted, build, learned, rotated
from interp.methods.refusal.choose import UPPER, WITH_OPENER, depth_blocks
from interp.models.anatomy import BoundWriter
from interp.operators import Ablation, Affine, NormPreserving, Operator, SubspaceAblation
from interp.recipes import LeastDisturbanceEdit
from interp.samples import DECISION
from interp.sites import Site
from interp.statistics.representation_engineering import (
    CLOSED,
    FIRST_TOKEN,
    MAIN,
    PARTIAL,
    RANDOM,
)
from interp.types import Direction, WeightDelta

LEVEL = "to the comply level"
DEPTHS = (0.8, 0.93)
STRENGTHS = {0.45: (1.0, 1.2), 1.0: (0.8, 1.0)}
"""Of an edit at the first token alone, by the share that attention carries."""
ABLATED = (0.75, 1.0)
"""Strengths of an ablation."""
DRAWS = 4
"""Settings of heretic's search space that are drawn; heretic itself tries 200."""
VARIANTS = ("norms kept (columns)", "two directions")
"""Edits that differ from partial ablation in one step, and are made at the setting chosen for that."""
ANSWERED = 400
"""Twins of the broad pairs whose responses a least-disturbance edit leaves alone, at most."""
SHIPPED = (*VARIANTS, FIRST_TOKEN)
"""Contenders that are measured on the shipped split alone."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One setting of one contender. kernels: heretic's parameters for attention and MLP. attention,
    opener_strength, learn: of a least-disturbance edit (:class:`interp.recipes.LeastDisturbanceEdit`)."""

    name: str
    block: int
    first: int = 0
    strength: float = 1.0
    attention: float = 1.0
    kernels: tuple[tuple[float, float, float, float], ...] = ()
    opener_strength: float = 0.0
    learn: float = 0.0


@dataclass(frozen=True, slots=True)
class Maker:
    """Deltas of candidates, fitted on one split; one that was learned is kept."""

    lm: LM
    fitted: Fitted
    _kept: dict[Candidate, WeightDelta] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, candidate: Candidate) -> WeightDelta:
        if candidate in self._kept:
            return self._kept[candidate]
        if candidate.name == RANDOM:
            return rotated(self(replace(candidate, name=MAIN)))
        if candidate.learn:
            before = self(replace(candidate, name=CLOSED, learn=0.0))
            self._kept[candidate] = learned(self.lm, self.fitted, before, candidate.learn)
            return self._kept[candidate]
        return self.lm.to_delta(MAKERS[candidate.name](self, candidate))

    def direction(self, candidate: Candidate) -> Direction:
        return self.fitted.direction(candidate.block)

    def blocks(self, candidate: Candidate) -> tuple[int, ...]:
        return tuple(range(candidate.first, self.lm.n_blocks))


def candidates(name: str, fitted: Fitted, n_blocks: int) -> list[Candidate]:
    """The settings of a contender. Blocks are at relative depths, so that they fit any model."""
    blocks = depth_blocks(n_blocks, fitted.directions[DECISION], DEPTHS)
    upper = round(UPPER * n_blocks)
    if name == "heretic's kernel":
        return list(_drawn(blocks, n_blocks))
    if name == MAIN:
        start = candidates(CLOSED, fitted, n_blocks)[0]
        return [replace(start, name=MAIN, learn=WITH_OPENER["learn"])]
    if name == CLOSED and fitted.opener:
        named = ("strength", "attention", "opener_strength")
        setting = {each: WITH_OPENER[each] for each in named}
        return [Candidate(name, blocks[-1], upper, **setting)]
    if name in (CLOSED, FIRST_TOKEN):
        return [
            Candidate(name, blocks[-1], upper, strength, attention)
            for attention, strengths in STRENGTHS.items()
            for strength in strengths
        ]
    first = 0 if name == "directional ablation" else upper
    tried = blocks if name == LEVEL else blocks[-1:]
    return [Candidate(name, b, first, s) for b in tried for s in ABLATED]


def _drawn(blocks: list[int], n_blocks: int) -> Iterator[Candidate]:
    """Draws from the ranges in which heretic searches (its defaults for a dense model)."""
    generator, last = random.Random(0), n_blocks - 1
    for _ in range(DRAWS):
        kernels = []
        for low in (0.8, -0.25):  # attention, MLP; a negative weight counts as none
            most = max(generator.uniform(low, 1.5), 0.0)
            position = generator.uniform(0.6, 1.0) * last
            least = generator.uniform(0.0, 1.0) * most
            kernels.append((most, position, least, generator.uniform(1.0, 0.6 * last)))
        yield Candidate("heretic's kernel", generator.choice(blocks), kernels=tuple(kernels))


def _ablation(maker: Maker, candidate: Candidate) -> Edit:
    return ablation(
        maker.lm.hf,
        maker.lm.anatomy,
        maker.direction(candidate),
        strength=candidate.strength,
        blocks=maker.blocks(candidate),
    )


def _at_writers(
    maker: Maker,
    candidate: Candidate,
    method: str,
    make: Callable[[BoundWriter, Tensor], Operator | None],
) -> Edit:
    """An operator for every writer of the candidate's blocks, from the writer and its weight."""
    operators = {}
    for writer in select_writers(maker.lm.anatomy, maker.blocks(candidate)):
        weight = canonical(readable(maker.lm.hf, writer.weight), writer.axes).cpu()
        if (operator := make(writer, weight)) is not None:
            operators[writer.weight] = operator
    return Edit(operators, recipe={"method": method})


def _unit(maker: Maker, writer: BoundWriter, block: int) -> Tensor:
    vector = maker.fitted.direction(block).vector
    return writer_unit(maker.lm.hf, writer, vector).cpu()


def _heretic(maker: Maker, candidate: Candidate) -> Edit:
    """Graded ablation with a weight for every writer: heretic's kernel, rows left as they are."""
    attention, mlp = (Kernel(*values) for values in candidate.kernels)

    def make(writer: BoundWriter, weight: Tensor) -> Operator | None:
        kernel = attention if writer.kind == "attention" else mlp
        strength = kernel.weight(writer.block or 0)
        return Ablation(_unit(maker, writer, candidate.block), strength) if strength else None

    return _at_writers(maker, candidate, "heretic", make)


def _to_level(maker: Maker, candidate: Candidate) -> Edit:
    """Mean replacement (ACE at the comply level): what varies along u goes, the comply mean stays."""
    samples = maker.fitted.samples

    def make(writer: BoundWriter, weight: Tensor) -> Operator:
        u = _unit(maker, writer, candidate.block)
        comply = samples.rows(Site.writer_in(writer.block, writer.name), False)
        mean = weight @ comply.float().mean(0)
        return Affine.around(mean, -candidate.strength * u.unsqueeze(-1), u.unsqueeze(0))

    return _at_writers(maker, candidate, "affine ablation", make)


def _norms_kept(maker: Maker, candidate: Candidate) -> Edit:
    def make(writer: BoundWriter, weight: Tensor) -> Operator:
        u = _unit(maker, writer, candidate.block)
        return NormPreserving.of(u, weight, "columns", candidate.strength)

    return _at_writers(maker, candidate, "norm-preserving ablation", make)


def _subspace(maker: Maker, candidate: Candidate) -> Edit:
    """Two directions at once: that of the block and that of the block four below."""
    known = sorted(maker.fitted.directions[DECISION])
    below = known[max(known.index(candidate.block) - 4, 0)]

    def make(writer: BoundWriter, weight: Tensor) -> Operator:
        rows = [_unit(maker, writer, b) for b in dict.fromkeys((candidate.block, below))]
        return SubspaceAblation(torch.stack(rows), candidate.strength)

    return _at_writers(maker, candidate, "subspace ablation", make)


def _least(maker: Maker, candidate: Candidate) -> Edit:
    return build(maker.lm, maker.fitted, least_recipe(candidate, maker.fitted.opener))


def least_recipe(candidate: Candidate, opener: str) -> LeastDisturbanceEdit:
    """The recipe of a least-disturbance candidate; the opener is that of the fit."""
    acts_after = bool(candidate.opener_strength)
    return LeastDisturbanceEdit(
        after_opener=opener if acts_after else None,
        learn=candidate.learn,
        strength=candidate.strength,
        block=candidate.block,
        first_block=candidate.first,
        opener_strength=candidate.opener_strength if acts_after else None,
        attention=candidate.attention,
        ridge=WITH_OPENER["ridge"],
    )


MAKERS: dict[str, Callable[[Maker, Candidate], Edit]] = {
    "directional ablation": _ablation,
    PARTIAL: _ablation,
    "heretic's kernel": _heretic,
    "norms kept (columns)": _norms_kept,
    "two directions": _subspace,
    LEVEL: _to_level,
    FIRST_TOKEN: _least,
    CLOSED: _least,
    MAIN: _least,
    RANDOM: _least,
}
