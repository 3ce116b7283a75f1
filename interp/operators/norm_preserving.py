"""Ablation in the weights that gives columns or rows of W their norms back.

columns (the norm-preserving ablation of llm-abliteration): every input column of ``W [d_model, d_in]``
is projected off u and scaled to its old norm, so that nothing of u is written. rows (heretic's
``row_normalization="full"`` before it cuts the rank): the same steps on output rows, ``diag(n) ·
rownormalise(Ŵ − λ u uᵀŴ)`` with ``W = diag(n) Ŵ``, which puts part of u back: see :func:`share_left`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from interp.errors import DeltaError, NoDirection, NotExpressible
from interp.operators.ablation import Ablation
from interp.operators.protocol import check_unit
from interp.types import LowRank, Vector, Weight

NormAxis = Literal["columns", "rows"]
AXIS: dict[str, int] = {"columns": -2, "rows": -1}
SAME = 1e-4  # relative: float32 on another device, never another matrix


def norm_restored(unit: Vector, weight: Weight, norm_axis: NormAxis, strength: float) -> Weight:
    """``W′ [*expert, d_model, d_in]``: W ablated by ``strength`` along ``unit``, norms put back.

    In the dtype of W. A column or row of which nothing is left has no norm to restore and stays 0.
    """
    if norm_axis not in AXIS:
        raise ValueError(f"norm_axis is columns or rows, not {norm_axis!r}")
    axis, u = AXIS[norm_axis], unit.to(weight)
    norms = weight.norm(dim=axis, keepdim=True)
    even = torch.where(norms > 0, weight / norms, torch.zeros_like(weight))
    left = even - strength * _along(u, even)
    lengths = left.norm(dim=axis, keepdim=True)
    # Round-off of what was removed is no direction of its own.
    real = lengths > 16 * torch.finfo(weight.dtype).eps
    return torch.where(real, left * (norms / lengths), torch.zeros_like(weight))


def share_left(
    unit: Vector, weight: Weight, norm_axis: NormAxis = "rows", strength: float = 1.0
) -> float:
    """``‖uᵀW′‖ / ‖uᵀW‖`` (Frobenius over inputs and experts), in float64: the component that stays.

    0 up to rounding for columns at strength 1. Raises NoDirection when W writes nothing along unit.
    """
    wide, u = weight.double(), unit.double()
    before = torch.einsum("d,...df->...f", u, wide).norm()
    if before == 0:
        raise NoDirection("this matrix writes nothing along the direction; no share can be left")
    after = torch.einsum("d,...df->...f", u, norm_restored(u, wide, norm_axis, strength)).norm()
    return (after / before).item()


@dataclass(frozen=True, slots=True, eq=False)
class NormPreserving:
    """``y ← y − λ (u·y) u + R a``: ablation, and what puts the norms of W back. Make it with :meth:`of`.

    unit u: ``[d_model]``, norm 1. restore R: ``[*expert, d_model, d_in]``, ``W′ − (I − λuuᵀ)W``, as large
    as the weight. gain: what the module multiplies its rows by, for embeddings that do. Weight form
    ``ΔW = W′ − W``: exact, of full rank, one factor of it an identity; biases are ablated and keep no
    norm. What is kept are norms of W, not of y. As a hook it needs the writer's input (at a site:
    NotExpressible), and it fits no weight but its own (DeltaError).
    """

    unit: Vector
    restore: Weight
    strength: float = 1.0
    norm_axis: NormAxis = "columns"
    gain: float = 1.0

    needs_input: ClassVar[bool] = True
    homogeneous: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact at every edited writer: ablated weights with their norms back"

    @classmethod
    def of(
        cls,
        unit: Vector,
        weight: Weight,
        norm_axis: NormAxis = "columns",
        strength: float = 1.0,
        gain: float = 1.0,
    ) -> NormPreserving:
        """The operator of one writer: ``weight [*expert, d_model, d_in]`` in canonical orientation.

        Raises ValueError for a unit of another norm and an unknown norm_axis.
        """
        check_unit(unit, "an ablation")
        restore = _restoration(unit, weight, norm_axis, strength)
        return cls(unit, restore, strength, norm_axis, gain)

    @property
    def plain(self) -> Ablation:
        """The same ablation without the norms."""
        return Ablation(self.unit, self.strength)

    def act(self, written: Tensor, inputs: Tensor | None = None) -> Tensor:
        if inputs is None:
            raise NotExpressible(
                "norm-preserving ablation acts on one writer through its input; put it at writers, or "
                "use NormKept(Ablation(unit)) on the stream"
            )
        r = self.restore.to(written)
        if not inputs.is_floating_point():  # an embedding: the input is one-hot, given as ids
            return self.plain.act(written) + self.gain * r.T[inputs]
        if r.ndim == 3:  # fused experts: their inputs come side by side
            r = r.movedim(0, 1).flatten(1)
        return self.plain.act(written) + inputs @ r.T

    def weight_update(self, weight: Weight) -> LowRank | None:
        restore, mine = _restoration(self.unit, weight, self.norm_axis, self.strength), self.restore
        same = restore.shape == mine.shape
        if not same or (restore - mine.to(restore)).norm() > SAME * weight.norm():
            raise DeltaError(
                "this norm-preserving ablation was made from another weight; make one for each writer "
                "with NormPreserving.of(unit, weight)"
            )
        change = restore - self.strength * _along(self.unit.to(weight), weight)
        return _full_rank(change)

    def bias_update(self, bias: Tensor | None, like: Weight) -> Tensor | None:
        return self.plain.bias_update(bias, like)


def _along(unit: Vector, weight: Weight) -> Weight:
    """``u uᵀW``."""
    return unit.unsqueeze(-1) * torch.einsum("d,...df->...f", unit, weight).unsqueeze(-2)


def _restoration(unit: Vector, weight: Weight, norm_axis: NormAxis, strength: float) -> Weight:
    ablated = weight - strength * _along(unit.to(weight), weight)
    return norm_restored(unit, weight, norm_axis, strength) - ablated


def _full_rank(change: Weight) -> LowRank:
    """The change itself as factors, the smaller side an identity."""
    d_out, d_in = change.shape[-2:]
    one = torch.eye(min(d_out, d_in), dtype=change.dtype, device=change.device)
    one = one.expand(*change.shape[:-2], -1, -1).contiguous()
    axes = "expert out in" if change.ndim == 3 else "out in"
    return LowRank(one, change, axes) if d_out <= d_in else LowRank(change, one, axes)
