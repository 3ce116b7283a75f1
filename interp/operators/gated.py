"""Any operator behind a condition: it acts only where a score passes a threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from interp.operators.protocol import HookOnly, Operator, check_unit, widened
from interp.types import Vector

Score = Literal["cosine", "projection"]


@dataclass(frozen=True, slots=True, eq=False)
class Gated(HookOnly):
    """``y ← operator(y)`` where the gate is open, y itself (bit for bit) where it is shut.

    unit u: ``[d_model]``, norm 1, in the coordinates of y. threshold: on the score; open above it, or
    with ``above=False`` at it and below, so that of two gates one is open. score: ``cosine``,
    ``(u·y)/‖y‖`` in −1 … 1 (0 where y is 0), or ``projection``, ``u·y`` in the units of y.
    Conditional steering in the way of CAST (Lee et al. 2409.05907), with these differences: CAST scores
    the mean over the prompt at one layer, once, with ``cos(y, tanh(proj_u y))``, which is blind to the
    sign of u, and then steers all tokens at other layers; this gate scores every position where it acts.
    A hook only. Raises ValueError for a unit of another norm, an unknown score or a threshold of NaN.
    """

    operator: Operator
    unit: Vector
    threshold: float
    above: bool = True
    score: Score = "cosine"

    exactness: ClassVar[str] = "a hook: acts at the positions whose score passes the threshold"
    why: ClassVar[str] = "a matrix cannot test a condition on the token"

    def __post_init__(self) -> None:
        check_unit(self.unit, "a gate")
        if self.score not in ("cosine", "projection"):
            raise ValueError(f"a gate scores by cosine or projection, not {self.score!r}")
        if math.isnan(self.threshold):
            raise ValueError("a gate needs a threshold that is a number; inf never opens it")

    @property
    def needs_input(self) -> bool:
        return self.operator.needs_input

    def scores(self, written: Tensor) -> Tensor:
        """The score of every position, ``[...]`` for ``written [..., d_model]``, float32 at least."""
        wide = widened(written)
        found = wide @ self.unit.to(wide)
        if self.score == "projection":
            return found
        length = wide.norm(dim=-1)
        return torch.where(length > 0, found / length, torch.zeros_like(found))

    def open(self, written: Tensor) -> Tensor:
        """Where the operator acts, bool ``[...]``."""
        over = self.scores(written) > self.threshold
        return over if self.above else ~over

    def act(self, written: Tensor, inputs: Tensor | None = None) -> Tensor:
        changed = self.operator.act(written, inputs)
        return torch.where(self.open(written).unsqueeze(-1), changed, written)
