"""Directional ablation, graded: ``y ← y − λ (u·y) u`` (Arditi et al. 2406.11717, eq. 4 at λ = 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from interp.types import Axes, LowRank, Vector, Weight


@dataclass(frozen=True, slots=True, eq=False)
class Ablation:
    """Remove the share ``strength`` of the component along ``unit``.

    unit: ``[d_model]``, norm 1, in the coordinates of the writer's output. strength λ: 0 nothing,
    1 ablation, 2 the Householder reflection; negative deepens the component.
    Weight form ``ΔW = −λ u (uᵀW)``, ``Δb = −λ u (u·b)``: exact, rank 1.
    """

    unit: Vector
    strength: float = 1.0

    needs_input: ClassVar[bool] = False
    homogeneous: ClassVar[bool] = True
    exactness: ClassVar[str] = "exact at every edited writer: (I − λuuᵀ)(Wa + b)"

    def act(self, written: Tensor, inputs: Tensor | None = None) -> Tensor:
        u = self.unit.to(written)
        return written - self.strength * (written @ u).unsqueeze(-1) * u

    def weight_update(self, weight: Weight) -> LowRank | None:
        u = self.unit.to(weight)
        a = torch.einsum("d,...df->...f", u, weight).unsqueeze(-2)
        b = (-self.strength * u).unsqueeze(-1).expand(*weight.shape[:-2], -1, -1)
        return LowRank(b.contiguous(), a.contiguous(), _axes(weight))

    def bias_update(self, bias: Tensor | None, like: Weight) -> Tensor | None:
        return None if bias is None else self.act(bias) - bias


def _axes(weight: Tensor) -> Axes:
    return "expert out in" if weight.ndim == 3 else "out in"
