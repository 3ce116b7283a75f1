"""Clamp: the component along a direction is kept inside an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from interp.operators.protocol import HookOnly, check_unit
from interp.types import Vector


@dataclass(frozen=True, slots=True, eq=False)
class Clamp(HookOnly):
    """``y ← y + (clip(u·y, low, high) − u·y) u``.

    unit u: ``[d_model]``, norm 1. low, high: bounds in the units of y, infinite for none; low = high is
    :meth:`Affine.ace` at that level. What lies inside stays. A hook only.
    Raises ValueError for a unit of another norm, low > high or a bound that is not a number.
    """

    unit: Vector
    low: float = -math.inf
    high: float = math.inf

    needs_input: ClassVar[bool] = False
    exactness: ClassVar[str] = "a hook: the component is clipped at every position"
    why: ClassVar[str] = (
        "whether the component is clipped depends on the token, which no matrix sees"
    )

    def __post_init__(self) -> None:
        check_unit(self.unit, "a clamp")
        if not self.low <= self.high:
            raise ValueError(f"a clamp needs low ≤ high, got {self.low} and {self.high}; swap them")

    def act(self, written: Tensor, inputs: Tensor | None = None) -> Tensor:
        u = self.unit.to(written)
        found = written @ u
        return written + (found.clamp(self.low, self.high) - found).unsqueeze(-1) * u
