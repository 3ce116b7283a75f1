"""Any operator with the length put back: ``y ← y′ ‖y‖ / ‖y′‖``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from interp.operators.protocol import HookOnly, Operator, widened


@dataclass(frozen=True, slots=True, eq=False)
class NormKept(HookOnly):
    """What ``operator`` makes of y, scaled to the norm of y, position by position.

    Only the direction of y changes. What the operator leaves alone comes back bit for bit; where it
    leaves nothing, nothing there can be scaled and the result is 0. Norms are taken in float32 at least.
    A hook only, whatever the operator.
    """

    operator: Operator

    exactness: ClassVar[str] = "a hook: the norm at every position is that before the edit"
    why: ClassVar[str] = "the norm of what is written is not linear in it"

    @property
    def needs_input(self) -> bool:
        return self.operator.needs_input

    def act(self, written: Tensor, inputs: Tensor | None = None) -> Tensor:
        changed = self.operator.act(written, inputs)
        wide = widened(changed)
        before, after = (v.norm(dim=-1, keepdim=True) for v in (widened(written), wide))
        scale = torch.where(after > 0, before / after, torch.zeros_like(after))
        return (wide * scale).to(changed)
