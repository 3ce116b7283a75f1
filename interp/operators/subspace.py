"""Ablation of a subspace, graded: ``y ← y − λ QᵀQ y`` with orthonormal rows Q.

Several directions removed one after the other leave a residue of the first ones and depend on the
order unless they are orthogonal; one projection off their span does neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from interp.maths import orthonormal
from interp.types import LowRank, Weight


@dataclass(frozen=True, slots=True, eq=False)
class SubspaceAblation:
    """Remove the share ``strength`` of what lies in the span of ``basis``.

    basis: ``[k, d_model]``, any independent vectors; kept orthonormalised (QR in float64), so that only
    their span counts: neither order nor length. In the coordinates of the writer's output: behind a
    post-norm give each vector through :func:`interp.edits.writer_unit`. strength λ as of
    :class:`Ablation`: 1 removes, 2 reflects through the orthogonal complement, 0 is nothing.
    Weight form ``ΔW = −λ Qᵀ(QW)``, ``Δb = −λ Qᵀ(Qb)``: exact, rank k.
    Raises NoDirection for vectors that are zero, not finite or dependent.
    """

    basis: Float[Tensor, "k d_model"]
    strength: float = 1.0

    needs_input: ClassVar[bool] = False
    homogeneous: ClassVar[bool] = True
    exactness: ClassVar[str] = "exact at every edited writer: (I − λQᵀQ)(Wa + b)"

    def __post_init__(self) -> None:
        object.__setattr__(self, "basis", orthonormal(self.basis))

    def act(self, written: Tensor, inputs: Tensor | None = None) -> Tensor:
        q = self.basis.to(written)
        return written - self.strength * (written @ q.T) @ q

    def weight_update(self, weight: Weight) -> LowRank | None:
        q = self.basis.to(weight)
        b = (-self.strength * q.T).expand(*weight.shape[:-2], -1, -1)
        axes = "expert out in" if weight.ndim == 3 else "out in"
        return LowRank(b.contiguous(), q @ weight, axes)

    def bias_update(self, bias: Tensor | None, like: Weight) -> Tensor | None:
        return None if bias is None else self.act(bias) - bias
