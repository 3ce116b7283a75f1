"""Every edit that the frontier compares, each with the settings among which the select split chooses."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from interp.edits import Edit, canonical, readable, select_writers, writer_unit
from interp.lm import LM
from interp.methods.heretic import Kernel
from interp.methods.refusal import Fitted, build, learned, random_control
from interp.methods.refusal.choose import UPPER, WITH_OPENER, depth_blocks
from interp.models.anatomy import BoundWriter
from interp.operators import Ablation, Affine, NormPreserving, Operator, SubspaceAblation
from interp.recipes import AblationEdit, LeastDisturbanceEdit
from interp.samples import DECISION
from interp.sites import Site
from interp.statistics.representation_engineering import (
    CLOSED,
    FIRST_TOKEN,
    MAIN,
    PARTIAL,
    RANDOM,
    WHOLE_STACK,
)
from interp.types import WeightDelta

ABLATION, KERNEL = WHOLE_STACK
LEVEL, NORMS, TWO = "to the comply level", "norms kept (columns)", "two directions"
TRIED_DEPTHS = (0.8, 0.93)
STRENGTHS = {0.45: (1.0, 1.2), 1.0: (0.8, 1.0)}
"""Strengths of an edit at the first token alone, by the share that attention carries."""
ABLATED = (0.75, 1.0)
"""Strengths of an ablation."""
DRAWS = 4
"""Settings of heretic's search space that are drawn; heretic itself tries 200."""
BELOW = 4
"""Blocks between the two directions of a subspace, among those that have a direction."""
VARIANTS = (NORMS, TWO)
"""Edits that differ from partial ablation in one step, and are made at the setting chosen for that."""
SHIPPED = (*VARIANTS, FIRST_TOKEN)
"""Contenders that are measured on the shipped split alone."""


@dataclass(frozen=True, slots=True)
class Setting:
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


MakeOperator: TypeAlias = Callable[["Maker", Setting, BoundWriter, Tensor, Tensor], Operator | None]
"""``make(maker, setting, writer, weight, unit)``: the operator at a writer, None for none."""


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes the deltas of settings from one fit; a learned one is made once."""

    lm: LM
    fitted: Fitted
    _learned: dict[Setting, WeightDelta] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, setting: Setting) -> WeightDelta:
        if setting.name == RANDOM:
            return random_control(self(replace(setting, name=MAIN)))
        if not setting.learn:
            return self.lm.to_delta(self.edit(setting))
        if setting not in self._learned:
            closed = self(replace(setting, name=CLOSED, learn=0.0))
            self._learned[setting] = learned(self.lm, self.fitted, closed, setting.learn)
        return self._learned[setting]

    def edit(self, setting: Setting) -> Edit:
        """The edit of a setting in closed form."""
        if setting.name in OPERATORS:
            return self.at_writers(setting, *OPERATORS[setting.name])
        if setting.name in (ABLATION, PARTIAL):
            recipe = AblationEdit(setting.strength, setting.block, setting.first)
            return build(self.lm, self.fitted, recipe)
        return build(self.lm, self.fitted, least_recipe(setting, self.fitted.opener))

    def blocks(self, setting: Setting) -> tuple[int, ...]:
        """The edited blocks."""
        return tuple(range(setting.first, self.lm.n_blocks))

    def unit(self, writer: BoundWriter, block: int) -> Tensor:
        """The direction of a block as a writer has to write it, behind the writer's gain, ``[d_model]``."""
        return writer_unit(self.lm.hf, writer, self.fitted.direction(block).vector).cpu()

    def at_writers(self, setting: Setting, method: str, make: MakeOperator) -> Edit:
        """The operator that ``make`` gives, at every edited writer that gets one."""
        operators = {}
        for writer in select_writers(self.lm.anatomy, self.blocks(setting)):
            weight = canonical(readable(self.lm.hf, writer.weight), writer.axes).cpu()
            unit = self.unit(writer, setting.block)
            if (operator := make(self, setting, writer, weight, unit)) is not None:
                operators[writer.weight] = operator
        return Edit(operators, recipe={"method": method})


def settings(name: str, fitted: Fitted, n_blocks: int) -> list[Setting]:
    """The settings of a contender. Blocks are at relative depths, so that they fit any model."""
    blocks = depth_blocks(n_blocks, fitted.directions[DECISION], TRIED_DEPTHS)
    upper = round(UPPER * n_blocks)
    if name == KERNEL:
        return list(_drawn(blocks, n_blocks))
    if name == MAIN:
        start = settings(CLOSED, fitted, n_blocks)[0]
        return [replace(start, name=MAIN, learn=WITH_OPENER["learn"])]
    if name == CLOSED and fitted.opener:
        shared = {each: WITH_OPENER[each] for each in ("strength", "attention", "opener_strength")}
        return [Setting(name, blocks[-1], upper, **shared)]
    if name in (CLOSED, FIRST_TOKEN):
        return [
            Setting(name, blocks[-1], upper, strength, attention)
            for attention, strengths in STRENGTHS.items()
            for strength in strengths
        ]
    first = 0 if name == ABLATION else upper
    tried = blocks if name == LEVEL else blocks[-1:]
    return [Setting(name, block, first, strength) for block in tried for strength in ABLATED]


def _drawn(blocks: list[int], n_blocks: int) -> Iterator[Setting]:
    """Draws from the ranges in which heretic searches (its defaults for a dense model)."""
    generator, last = random.Random(0), n_blocks - 1
    for _ in range(DRAWS):
        kernels = []
        for low in (0.8, -0.25):  # attention, MLP; a negative weight counts as none
            most = max(generator.uniform(low, 1.5), 0.0)
            position = generator.uniform(0.6, 1.0) * last
            least = generator.uniform(0.0, 1.0) * most
            kernels.append((most, position, least, generator.uniform(1.0, 0.6 * last)))
        yield Setting(KERNEL, generator.choice(blocks), kernels=tuple(kernels))


def least_recipe(setting: Setting, opener: str) -> LeastDisturbanceEdit:
    """The recipe of a least-disturbance setting; the opener is that of the fit."""
    acts_after = bool(setting.opener_strength)
    return LeastDisturbanceEdit(
        after_opener=opener if acts_after else None,
        learn=setting.learn,
        strength=setting.strength,
        block=setting.block,
        first_block=setting.first,
        opener_strength=setting.opener_strength if acts_after else None,
        attention=setting.attention,
        ridge=WITH_OPENER["ridge"],
    )


def _kernel(
    maker: Maker, setting: Setting, writer: BoundWriter, weight: Tensor, unit: Tensor
) -> Operator | None:
    """Graded ablation with a weight for every writer: heretic's kernel, rows left as they are."""
    attention, mlp = (Kernel(*values) for values in setting.kernels)
    strength = (attention if writer.kind == "attention" else mlp).weight(writer.block or 0)
    return Ablation(unit, strength) if strength else None


def _to_level(
    maker: Maker, setting: Setting, writer: BoundWriter, weight: Tensor, unit: Tensor
) -> Operator:
    """Affine ablation (ACE): the component along u becomes that of the comply mean."""
    inputs = maker.fitted.samples.rows(Site.writer_in(writer.block, writer.name), False)
    mean = weight @ inputs.float().mean(0)
    return Affine.around(mean, -setting.strength * unit.unsqueeze(-1), unit.unsqueeze(0))


def _norms_kept(
    maker: Maker, setting: Setting, writer: BoundWriter, weight: Tensor, unit: Tensor
) -> Operator:
    """Ablation that keeps the norm of every column."""
    return NormPreserving.of(unit, weight, "columns", setting.strength)


def _subspace(
    maker: Maker, setting: Setting, writer: BoundWriter, weight: Tensor, unit: Tensor
) -> Operator:
    """Ablation of two directions at once: the block's own, and the one ``BELOW`` blocks below."""
    known = sorted(maker.fitted.directions[DECISION])
    below = known[max(known.index(setting.block) - BELOW, 0)]
    rows = [unit] if below == setting.block else [unit, maker.unit(writer, below)]
    return SubspaceAblation(torch.stack(rows), setting.strength)


OPERATORS: dict[str, tuple[str, MakeOperator]] = {
    KERNEL: ("heretic", _kernel),
    NORMS: ("norm-preserving ablation", _norms_kept),
    TWO: ("subspace ablation", _subspace),
    LEVEL: ("affine ablation", _to_level),
}
"""Method and operator of the contenders that are no recipe."""
CONTENDERS = (
    ABLATION, PARTIAL, KERNEL, NORMS, TWO, LEVEL, FIRST_TOKEN, CLOSED, MAIN, RANDOM,
)  # fmt: skip
