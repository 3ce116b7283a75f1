"""The least-disturbance edit: move the class difference of one writer, disturb comply inputs least.

``ΔW = −α (u·WΔa) u qᵀ`` with ``q`` from :func:`interp.maths.least_disturbance_probe`; glossary:
Δa = E_refuse[a] − E_comply[a] (writer inputs), Σ = E_comply[aaᵀ] + εI, ``q·Δa = 1``, so the edit
shifts ``E_refuse[u·y] − E_comply[u·y]`` by exactly ``−α`` times itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from interp.types import LowRank, Vector, Weight


@dataclass(frozen=True, slots=True, eq=False)
class LeastDisturbance:
    """``y ← y − amount · (q·a) u``.

    unit u: ``[d_model]``. probe q: ``[d_in]``, or ``[expert, d_in]`` for fused experts (then a is the
    routing-weighted input of each expert). amount: ``α · u·WΔa``, the shift removed at the class
    difference. Weight form ``−amount · u qᵀ``: exact, rank 1.
    """

    unit: Vector
    probe: Float[Tensor, "*expert d_in"]
    amount: float

    needs_input: ClassVar[bool] = True
    homogeneous: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact at every edited writer: Wa − α(u·WΔa)(q·a)u"

    def act(self, written: Tensor, inputs: Tensor | None = None) -> Tensor:
        if inputs is None:
            raise ValueError("the least-disturbance operator needs the writer's input")
        q = self.probe.reshape(-1).to(inputs)
        return written - self.amount * (inputs @ q).unsqueeze(-1) * self.unit.to(written)

    def weight_update(self, weight: Weight) -> LowRank | None:
        if self.amount == 0.0:
            return None
        u, q = self.unit.to(weight), self.probe.to(weight)
        b = (-self.amount * u).unsqueeze(-1).expand(*weight.shape[:-2], -1, -1)
        axes = "expert out in" if weight.ndim == 3 else "out in"
        return LowRank(b.contiguous(), q.unsqueeze(-2).contiguous(), axes)

    def bias_update(self, bias: Tensor | None, like: Weight) -> Tensor | None:
        return None
