"""Every edit that the frontier compares, each with the settings among which the select split chooses."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from interp.backends.protocol import Backend
from interp.edits import Edit, ablation, canonical, readable, select_writers, to_delta, writer_unit
from interp.methods.heretic import Kernel
from interp.methods.refusal import Fitted, Setting, build, random_control
from interp.operators import Affine, NormPreserving, SubspaceAblation
from interp.types import Direction, WeightDelta

MAIN = "least disturbance"
RANDOM = "random direction"
UPPER = 0.53
"""Partial edits begin at this share of the stack."""
DEPTHS = (0.8, 0.87, 0.93)
DRAWS = 12
"""Settings of heretic's search space that are drawn; heretic itself tries 200."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One setting of one contender. kernels: heretic's parameters for attention and MLP."""

    name: str
    block: int
    first: int = 0
    strength: float = 1.0
    kernels: tuple[tuple[float, float, float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Maker:
    """Deltas of candidates, fitted on one split."""

    backend: Backend
    fitted: Fitted

    def __call__(self, candidate: Candidate) -> WeightDelta:
        edit = MAKERS[candidate.name](self, candidate)
        return to_delta(self.backend.model, self.backend.anatomy, edit)

    def direction(self, candidate: Candidate) -> Direction:
        return self.fitted.directions[candidate.block]

    def blocks(self, candidate: Candidate) -> tuple[int, ...]:
        return tuple(range(candidate.first, self.backend.anatomy.n_blocks))


def candidates(name: str, fitted: Fitted, n_blocks: int) -> list[Candidate]:
    """The settings of a contender. Blocks are at relative depths, so that they fit any model."""
    known = sorted(fitted.directions)
    at = [min(known, key=lambda b, d=d: abs(b - d * n_blocks)) for d in DEPTHS]
    blocks = list(dict.fromkeys(at))
    upper = round(UPPER * n_blocks)
    if name == "heretic's kernel":
        return list(_drawn(blocks, n_blocks))
    first = 0 if name == "directional ablation" else upper
    strengths = (0.6, 0.8, 1.0) if name in (MAIN, RANDOM) else (0.75, 1.0)
    return [Candidate(name, b, first, s) for b in blocks for s in strengths]


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
        maker.backend.model,
        maker.backend.anatomy,
        maker.direction(candidate),
        strength=candidate.strength,
        blocks=maker.blocks(candidate),
    )


def _heretic(maker: Maker, candidate: Candidate) -> Edit:
    """Graded ablation with a weight for every writer: heretic's kernel, rows left as they are."""
    attention, mlp = (Kernel(*values) for values in candidate.kernels)
    edit = _ablation(maker, candidate)
    kinds = {w.weight: w for w in maker.backend.anatomy.block_writers}
    operators = {}
    for name, operator in edit.writers.items():
        kernel = attention if kinds[name].kind == "attention" else mlp
        weight = kernel.weight(kinds[name].block or 0)
        if weight:
            operators[name] = replace(operator, strength=weight)  # type: ignore[type-var]
    return Edit(operators, recipe={"method": "heretic"})


def _to_level(maker: Maker, candidate: Candidate) -> Edit:
    """Mean replacement (ACE at the comply level): what varies along u goes, the comply mean stays."""
    operators = {}
    model, comply = maker.backend.model, maker.fitted.statistics.comply
    for writer in select_writers(maker.backend.anatomy, maker.blocks(candidate)):
        u = writer_unit(model, writer, maker.direction(candidate).vector).cpu()
        weight = canonical(readable(model, writer.weight), writer.axes).cpu()
        level = (u @ weight @ comply[writer.name].float().mean(0)).item()
        lr = -candidate.strength * u.unsqueeze(-1)
        operators[writer.weight] = Affine(lr, u.unsqueeze(0), candidate.strength * level * u)
    return Edit(operators, recipe={"method": "affine ablation"})


def _norms_kept(maker: Maker, candidate: Candidate) -> Edit:
    operators = {}
    model = maker.backend.model
    for writer in select_writers(maker.backend.anatomy, maker.blocks(candidate)):
        u = writer_unit(model, writer, maker.direction(candidate).vector).cpu()
        weight = canonical(readable(model, writer.weight), writer.axes).cpu()
        operators[writer.weight] = NormPreserving.of(u, weight, "columns", candidate.strength)
    return Edit(operators, recipe={"method": "norm-preserving ablation"})


def _subspace(maker: Maker, candidate: Candidate) -> Edit:
    """Two directions at once: that of the block and that of the block four below."""
    found = maker.fitted.directions
    below = max(min(found), candidate.block - 4)
    below = below if below in found and below != candidate.block else min(found)
    pair = torch.stack([found[b].vector for b in dict.fromkeys((candidate.block, below))])
    operators = {}
    for writer in select_writers(maker.backend.anatomy, maker.blocks(candidate)):
        rows = [writer_unit(maker.backend.model, writer, v).cpu() for v in pair]
        operators[writer.weight] = SubspaceAblation(torch.stack(rows), candidate.strength)
    return Edit(operators, recipe={"method": "subspace ablation"})


def _least(maker: Maker, candidate: Candidate) -> Edit:
    setting = Setting("least-disturbance", candidate.block, candidate.first, candidate.strength)
    return build(maker.backend, maker.fitted, setting)


MAKERS: dict[str, Callable[[Maker, Candidate], Edit]] = {
    "directional ablation": _ablation,
    "partial ablation": _ablation,
    "heretic's kernel": _heretic,
    "norms kept (columns)": _norms_kept,
    "two directions": _subspace,
    "to the comply level": _to_level,
    MAIN: _least,
    RANDOM: lambda maker, candidate: random_control(_least(maker, candidate)),
}
