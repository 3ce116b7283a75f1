"""Operators: one residual operator a file, each with two faces proved equal by ``tests/laws``.

``act`` works on what a writer wrote, ``delta`` on the writer's matrix; at one writer
``act(W a + b, a) = (W + ΔW) a + (b + Δb)`` for every input a.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from interp.operators.ablation import Ablation
from interp.operators.addition import Addition
from interp.operators.least_disturbance import LeastDisturbance
from interp.types import LowRank, Vector, Weight

__all__ = ["Ablation", "Addition", "LeastDisturbance", "Operator"]


@runtime_checkable
class Operator(Protocol):
    """What every operator offers.

    needs_input: ``act`` also wants the writer's input. homogeneous: ``act`` maps 0 to 0 and is linear, so
    that it may act on a sum of experts as well as on each. exactness: one sentence for the receipt.
    """

    needs_input: bool
    homogeneous: bool
    exactness: str

    def act(self, written: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The edited write, ``[..., d_model]``; inputs: ``[..., d_in]``."""
        ...

    def weight_update(self, weight: Weight) -> LowRank | None:
        """ΔW for ``weight [*expert, d_model, d_in]`` in canonical orientation, None when nothing changes."""
        ...

    def bias_update(self, bias: Tensor | None, like: Weight) -> Vector | None:
        """Δb for the writer's bias (None when it has none); None when nothing changes."""
        ...
