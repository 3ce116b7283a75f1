"""Angular steering: turn the part of y in a plane to one angle (Vu & Nguyen 2510.26243)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import NoDirection
from interp.maths import orthogonalise, unit
from interp.operators.protocol import HookOnly, widened
from interp.types import Vector

INDEPENDENT = 1e-5  # smallest share of the second vector outside the line of the first


@dataclass(frozen=True, slots=True, eq=False)
class Angular(HookOnly):
    """``y ← y − Πy + ‖Πy‖ (cos θ · b₁ + sin θ · b₂)``, Π the projector on the plane of b₁ and b₂.

    basis: ``[2, d_model]``; the first row is b₁ (the direction), the second is made orthogonal to it, and
    both get norm 1. degrees θ: the angle that the part in the plane has afterwards, counted from b₁
    towards b₂ — a target, not a turn, so that 0 is not the identity: 0 points along b₁, 90 removes b₁,
    180 points against it. adaptive: only where ``b₁·y > 0``. The norm is kept and acting twice is acting
    once. Source: 2510.26243; there b₂ is the first principal component of candidate directions, which are
    read behind the norms of every block; here the plane and the place are the caller's. A hook only.
    Raises NoDirection for rows that are zero or parallel, ValueError for an angle that is not finite.
    """

    basis: Float[Tensor, "2 d_model"]
    degrees: float
    adaptive: bool = False

    needs_input: ClassVar[bool] = False
    exactness: ClassVar[str] = "a hook: the part in the plane is turned at every position"
    why: ClassVar[str] = "a turn to a fixed angle is not linear in what is written"

    def __post_init__(self) -> None:
        if not math.isfinite(self.degrees):
            raise ValueError(f"an angle needs a number of degrees, got {self.degrees}")
        first, second = (unit(row.double()) for row in self.basis)
        rest = orthogonalise(second, first)
        if rest.norm() < INDEPENDENT:
            raise NoDirection("the two vectors of the plane are parallel; give another second one")
        plane = torch.stack([first, unit(rest)]).to(self.basis.dtype)
        object.__setattr__(self, "basis", plane)

    @property
    def target(self) -> Vector:
        """``cos θ · b₁ + sin θ · b₂``, ``[d_model]``."""
        angle = math.radians(self.degrees)
        return math.cos(angle) * self.basis[0] + math.sin(angle) * self.basis[1]

    def act(self, written: Tensor, inputs: Tensor | None = None) -> Tensor:
        wide = widened(written)
        plane = self.basis.to(wide)
        inside = wide @ plane.T
        length = inside.norm(dim=-1, keepdim=True)
        turned = (wide - inside @ plane + length * self.target.to(wide)).to(written)
        return torch.where(inside[..., :1] > 0, turned, written) if self.adaptive else turned
