"""Fewer ranks for formats whose loaders limit them, with the error that this costs.

By Eckart and Young the truncated SVD is the nearest matrix of its rank: what is left out has Frobenius
norm ``√(σ²_{k+1} + …)``, and moves no unit input by more than ``σ_{k+1}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from interp.errors import DeltaError
from interp.types import LowRank, Update, WeightDelta


@dataclass(frozen=True, slots=True)
class Truncation:
    """What a truncation to ``rank`` leaves out, over all updates.

    relative: Frobenius norm left out over the whole delta's. worst: the largest such share of one
    matrix, and ``at`` its name. spectral: largest σ_{k+1}, a bound on the change of any writer's
    output per unit of its input. cut: how many matrices had a larger rank.
    """

    rank: int
    relative: float
    worst: float
    at: str
    spectral: float
    cut: int

    def __str__(self) -> str:
        return (
            f"rank {self.rank} leaves out {self.relative:.2%} of the delta's norm (at most "
            f"{self.worst:.2%}, at {self.at}; σ of the next rank at most {self.spectral:.3g})"
        )


def truncated(delta: WeightDelta, rank: int) -> tuple[WeightDelta, Truncation]:
    """The delta with every matrix cut to ``rank``, and the error; biases stay as they are.

    Factors of matrices that need no cut stay bit for bit. Raises DeltaError for a rank below 1.
    """
    if rank < 1:
        raise DeltaError(f"a truncation keeps at least rank 1, not {rank}")
    updates: dict[str, Update] = dict(delta.updates)
    left: dict[str, float] = {}
    whole: dict[str, float] = {}
    spectral, cut = 0.0, 0
    for name, update in delta:
        if not isinstance(update, LowRank):
            continue
        values, kept = _svd(update, rank)
        whole[name] = values.square().sum().item()
        if update.rank <= rank:
            continue
        left[name] = values[..., rank:].square().sum().item()
        spectral = (
            max(spectral, values[..., rank].max().item()) if values.shape[-1] > rank else spectral
        )
        updates[name], cut = kept, cut + 1
    shares = {name: (left[name] / whole[name]) ** 0.5 if whole[name] else 0.0 for name in left}
    at = max(shares, key=shares.__getitem__, default="")
    total = sum(whole.values())
    relative = (sum(left.values()) / total) ** 0.5 if total else 0.0
    report = Truncation(rank, relative, shares.get(at, 0.0), at, spectral, cut)
    if not cut:
        return delta, report
    return replace(delta, updates=updates, **_said(delta, report)), report


def _said(delta: WeightDelta, report: Truncation) -> Mapping[str, Any]:
    """The truncation, where readers of the delta look."""
    return {
        "recipe": {**delta.recipe, "truncation": _as_json(report)},
        "exactness": f"{delta.exactness}; truncated: {report}",
    }


def _as_json(report: Truncation) -> dict[str, Any]:
    return {name: getattr(report, name) for name in Truncation.__slots__}


def _svd(update: LowRank, rank: int) -> tuple[Tensor, LowRank]:
    """Singular values ``[*expert, k]`` of ``b @ a``, and its truncation, without forming the product."""
    left, upper = torch.linalg.qr(update.b.double())
    right, lower = torch.linalg.qr(update.a.double().mT)
    u, values, v = torch.linalg.svd(upper @ lower.mT, full_matrices=False)
    root = values[..., :rank].sqrt()
    b = (left @ u[..., :, :rank]) * root.unsqueeze(-2)
    a = root.unsqueeze(-1) * (v[..., :rank, :] @ right.mT)
    return values, LowRank(b.float(), a.float(), update.axes)
