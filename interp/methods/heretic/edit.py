"""The edits that heretic can make, as weight deltas: kernel, direction index, row normalisation.

``row_normalization``: ``none`` is graded ablation, ``ΔW = −λ v vᵀW``. ``pre`` computes it on the
row-normalised matrix Ŵ and scales rows back: ``ΔW = −λ diag(n) v vᵀŴ``, n the row norms of W.
``full`` also restores the row norms after the edit, ``diag(n) · rownormalise(Ŵ − λ v vᵀŴ) − W``, and
keeps rank 3 of that by a seeded randomised SVD. A row is an output here (``dim=1`` of ``[d_model,
d_in]``), so that ``vᵀ(W + ΔW) ≠ 0`` for ``pre`` and ``full``: some of the direction stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from interp.edits import fingerprint, readable
from interp.errors import NotExpressible
from interp.lm import LM
from interp.models.anatomy import Anatomy, BoundWriter
from interp.models.ruler import HERETIC_COMPONENTS, why_not_heretic
from interp.types import Coverage, LowRank, Vector, WeightDelta

RowNormalization = Literal["none", "pre", "full"]
METHOD = "heretic"
RANK = 3
EXACTNESS = {
    "none": "W − λ v vᵀW, as heretic writes it",
    "pre": "W − λ diag(row norms) v vᵀŴ, as heretic writes it",
    "full": "rank-{rank} truncation of the row-norm-restoring ablation, as heretic writes it",
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """Weight over blocks of one component; the names are those of heretic's parameters.

    The weight is ``max_weight`` at block ``max_weight_position``, falls linearly to ``min_weight`` at
    a distance of ``min_weight_distance`` blocks, and blocks farther away are not edited. Positions
    need not be whole. Weight 1 removes the direction, 2 reflects it, a negative one deepens it.
    Raises NotExpressible for a distance that is not positive and for values that are not finite.
    """

    max_weight: float
    max_weight_position: float
    min_weight: float
    min_weight_distance: float

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, asdict(self).values())) or self.min_weight_distance <= 0:
            raise NotExpressible(
                f"{self} is no kernel: give finite numbers and a min_weight_distance above 0"
            )

    def weight(self, block: int) -> float | None:
        """λ of a block, None where it is not edited."""
        distance = abs(block - self.max_weight_position)
        if distance > self.min_weight_distance:
            return None
        fall = distance / self.min_weight_distance
        return self.max_weight + fall * (self.min_weight - self.max_weight)

    @classmethod
    def parse(cls, text: str) -> Kernel:
        """``max_weight,max_weight_position,min_weight,min_weight_distance``, as the command line has it."""
        try:
            return cls(*(float(part) for part in text.split(",")))
        except (ValueError, TypeError):
            raise NotExpressible(
                f"{text!r} is no kernel; give four numbers: "
                "max_weight,max_weight_position,min_weight,min_weight_distance"
            ) from None


def components(anatomy: Anatomy) -> dict[str, tuple[BoundWriter, ...]]:
    """heretic's component name → the writers that heretic reaches under it, in block order.

    Raises NotExpressible, with the reason, where heretic does not load the model at all.
    """
    if (reason := why_not_heretic(anatomy)) is not None:
        raise NotExpressible(f"{reason}; use `interp edit` and export to another format")
    found: dict[str, list[BoundWriter]] = {}
    for writer in anatomy.block_writers:
        inside = writer.module.removeprefix(f"{anatomy.family.blocks}.").partition(".")[2]
        name = HERETIC_COMPONENTS.get(inside)
        if name is not None and not writer.fused:
            found.setdefault(name, []).append(writer)
    return {name: tuple(writers) for name, writers in sorted(found.items())}


def heretic_delta(
    lm: LM,
    directions: Tensor,
    kernels: Mapping[str, Kernel],
    *,
    direction_index: float | None = None,
    row_normalization: RowNormalization = "none",
    rank: int = RANK,
    seed: int = 0,
) -> WeightDelta:
    """The delta that heretic's parameters stand for, with factors equal to heretic's bit for bit.

    directions: ``[n_blocks + 1, d_model]`` of :func:`residual_directions`. direction_index: a block,
    also between two (then the directions are interpolated); None gives each block its own.
    kernels: one for each of :func:`components`. rank, seed: of ``full`` alone.
    Raises NotExpressible for a model that heretic does not load, a missing or unknown component, or
    an index outside the blocks; DeltaError for quantised weights.
    """
    reached = components(lm.anatomy)
    one = None if direction_index is None else _between(directions, direction_index)
    updates: dict[str, LowRank] = {}
    for writer, weight in _weights(reached, kernels):
        unit = directions[(writer.block or 0) + 1] if one is None else one
        pair = factors(readable(lm.hf, writer.weight), unit, weight, row_normalization, rank, seed)
        updates[writer.weight] = LowRank(*(factor.cpu() for factor in pair), writer.axes)
    return WeightDelta(
        updates=updates,
        base=fingerprint(lm.hf, lm.anatomy),
        recipe={
            "method": METHOD,
            "direction_index": direction_index,
            "kernels": {name: asdict(kernel) for name, kernel in kernels.items()},
            "row_normalization": row_normalization,
            "rank": rank if row_normalization == "full" else 1,
            "seed": seed,
        },
        exactness=EXACTNESS[row_normalization].format(rank=rank),
        coverage=_coverage(lm.anatomy, reached, updates),
        checkpoint={w.weight: w.checkpoint for w in lm.anatomy.writers if w.weight in updates},
    )


def _weights(
    reached: Mapping[str, tuple[BoundWriter, ...]], kernels: Mapping[str, Kernel]
) -> Iterator[tuple[BoundWriter, float]]:
    """Every writer that is edited, with its weight.

    Raises NotExpressible unless each component has a kernel.
    """
    if kernels.keys() != reached.keys():
        raise NotExpressible(
            f"give one kernel for each of {', '.join(reached)}; got {', '.join(kernels) or 'none'}"
        )
    for name, writers in reached.items():
        for writer in writers:
            if (weight := kernels[name].weight(writer.block or 0)) is not None:
                yield writer, weight


def _coverage(
    anatomy: Anatomy, reached: Mapping[str, tuple[BoundWriter, ...]], updates: Mapping[str, LowRank]
) -> Coverage:
    known = {w.weight for writers in reached.values() for w in writers}
    skipped = {
        w.weight: "outside the kernel" if w.weight in known else "heretic does not reach it"
        for w in anatomy.writers
        if w.weight not in updates
    }
    return Coverage(tuple(updates), skipped | anatomy.unreached)


def _between(directions: Tensor, index: float) -> Vector:
    """The direction at a block or between two, renormalised."""
    share, row = math.modf(index + 1)
    if not 0 <= index < len(directions) - 2:
        raise NotExpressible(
            f"direction index {index} is outside 0 … {len(directions) - 2}, the last block excluded: "
            "heretic interpolates towards the next one"
        )
    mixed = directions[int(row)].lerp(directions[int(row) + 1], share)
    return normalize(mixed, p=2, dim=0)


def factors(
    weight: Tensor, unit: Vector, strength: float, normalization: str, rank: int, seed: int
) -> tuple[Tensor, Tensor]:
    """``(B [d_model, k], A [k, d_in])`` for ``W [d_model, d_in]`` in fp32; see the module."""
    unit = unit.to(weight.device)
    if normalization == "none":
        return (-strength * unit).view(-1, 1), (unit @ weight).view(1, -1)
    norms = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    even = normalize(weight, p=2, dim=1)
    a = (unit @ even).view(1, -1)
    b = (-strength * unit).view(-1, 1)
    if normalization == "pre":
        return norms * b, a
    if normalization != "full":
        raise NotExpressible(f"row_normalization is none, pre or full, not {normalization!r}")
    change = normalize(even + b @ a, p=2, dim=1) * norms - weight
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        left, values, right = torch.svd_lowrank(change, q=2 * rank + 4, niter=6)
    root = torch.diag(torch.sqrt(values[:rank]))
    return left[:, :rank] @ root, root @ right[:, :rank].T
