"""Scaling coordinate by coordinate: ``y ← m ⊙ y``; zeros are a mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from interp.types import LowRank, Vector, Weight


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """Multiply every coordinate by its own factor.

    factors m: ``[d]``, or one number for all; 1 keeps a coordinate, 0 removes it. Weight form
    ``ΔW = (diag(m) − I) W``, ``Δb = (m − 1) ⊙ b``: exact; the rank is the number of factors that are not 1.
    """

    factors: Float[Tensor, " d"] | Float[Tensor, ""]

    needs_input: ClassVar[bool] = False
    homogeneous: ClassVar[bool] = True
    exactness: ClassVar[str] = "exact at every edited writer: m ⊙ (Wa + b)"

    def act(self, written: Tensor, inputs: Tensor | None = None) -> Tensor:
        return written * self.factors.to(written)

    def linear_form(self, width: int) -> tuple[Tensor, Tensor, Vector | None]:
        """``(left [d, k], right [k, d], None)`` with ``m ⊙ y = y + left right y``, for d = width."""
        factors = self.factors.float().expand(width)
        right = torch.eye(width, device=factors.device)[factors != 1]
        return right.T * (factors - 1).unsqueeze(-1), right, None

    def weight_update(self, weight: Weight) -> LowRank | None:
        left, right, _ = self.linear_form(weight.shape[-2])
        if not len(right):
            return None
        axes = "expert out in" if weight.ndim == 3 else "out in"
        b = left.to(weight).expand(*weight.shape[:-2], -1, -1)
        return LowRank(b.contiguous(), right.to(weight) @ weight, axes)

    def bias_update(self, bias: Tensor | None, like: Weight) -> Tensor | None:
        return None if bias is None else self.act(bias) - bias
