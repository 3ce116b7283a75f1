"""Affine maps of what a writer writes: ``y ← (I + L R) y + c`` with low-rank L R.

Affine concept editing (ACE, Marshall et al. 2411.09003) sets one component to a level, LEACE (Belrose
et al. 2306.03819) makes class means equal with the least change, reflections swap sides.
On the stream itself an affine map is a hook: the skip path carries the component past every matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import NoDirection
from interp.operators.protocol import check_unit
from interp.types import Acts, LowRank, Vector, Weight

RANK_TOLERANCE = 1e-9  # share of the largest variance (its root: of spread) that is round-off


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """``y ← y + left (right y) + shift``.

    left: ``[d_model, k]``, right: ``[k, d_model]``, shift c: ``[d_model]`` or None for none; all in the
    coordinates and the scale of the writer's output. Weight form ``ΔW = left (right W)``,
    ``Δb = left (right b) + c``: exact, rank k, and one more at an embedding, whose rows take c. With a
    shift it has no weight form behind a post-norm or inside fused experts (whose routing weights would
    scale it; there the hook is refused, too); without one it is linear and exact everywhere.
    """

    left: Float[Tensor, "d_model k"]
    right: Float[Tensor, "k d_model"]
    shift: Vector | None = None

    needs_input: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact at every edited writer: (I + LR)(Wa + b) + c"

    @property
    def homogeneous(self) -> bool:
        return self.shift is None

    @classmethod
    def ace(cls, unit: Vector, level: float = 0.0) -> Affine:
        """Set the component along ``unit`` to ``level``: ``y − (u·y) u + level u`` (2411.09003).

        unit u: ``[d_model]``, norm 1 (ValueError otherwise). level: in the units of y; the paper's
        ``proj_v μ⁻ + αv`` is level ``u·μ⁻ + α‖v‖``, so that α = 0 gives the level of the negative class
        and α = 1, for ``v = μ⁺ − μ⁻``, that of the positive one. The paper edits the stream at each
        layer; at writers the levels of all writes add up: give the level to one of them, 0 to the rest.
        """
        check_unit(unit, "ACE")
        shift = level * unit if level else None
        return cls(-unit.unsqueeze(-1), unit.unsqueeze(0), shift)

    @classmethod
    def reflection(cls, unit: Vector, level: float = 0.0) -> Affine:
        """Mirror y at the hyperplane ``u·y = level``: ``y − 2 (u·y − level) u``, its own inverse.

        unit u: ``[d_model]``, norm 1 (ValueError otherwise). At level 0 the Householder reflection.
        """
        check_unit(unit, "a reflection")
        shift = 2.0 * level * unit if level else None
        return cls(-2.0 * unit.unsqueeze(-1), unit.unsqueeze(0), shift)

    @classmethod
    def around(
        cls,
        mean: Vector,
        left: Float[Tensor, "d_model k"],
        right: Float[Tensor, "k d_model"],
    ) -> Affine:
        """``y ← μ + (I + left right)(y − μ)``: the linear map about ``mean``, which stays where it is."""
        return cls(left, right, -(left @ (right @ mean)))

    @classmethod
    def leace(cls, acts: Acts, concept: Float[Tensor, "m z"]) -> Affine:
        """LEACE fitted on ``acts [n, d_model]``: no linear probe finds ``concept [n, z]`` afterwards.

        ``y ← y − W⁺PW(y − μ)`` with ``W = Σ^{-1/2}`` (pseudo-inverse) and P the projector on the columns
        of ``W Cov(y, concept)``; on the rows it was fitted on, the covariance with the concept is 0, so
        class means are equal when ``concept`` holds 0/1 labels or one-hot classes. Rank ≤ z; solved in
        float64, returned in the dtype of acts. We take the sample covariance as it is, without
        shrinkage: with fewer rows than dimensions the guarantee holds for these rows alone.
        Raises ValueError when the rows do not match, NoDirection when nothing covaries with the concept.
        """
        if len(acts) != len(concept):
            raise ValueError(
                f"LEACE needs one concept row per activation, got {len(acts)} and {len(concept)}"
            )
        rows, labels = acts.double(), concept.double()
        mean = rows.mean(0)
        rows, labels = rows - mean, labels - labels.mean(0)
        root, inverse = _roots(rows.T @ rows / len(rows))
        found, sizes, _ = torch.linalg.svd(inverse @ rows.T @ labels / len(rows), False)
        # Whitened, so that each size is at most the spread of the labels: a scale to compare with.
        kept = sizes > RANK_TOLERANCE**0.5 * labels.square().mean().sqrt()
        if not kept.any():
            raise NoDirection(
                "no activation covaries with this concept; give rows of at least two classes"
            )
        basis = found[:, kept]
        made = cls.around(mean, -root @ basis, basis.T @ inverse)
        assert made.shift is not None
        return cls(*(part.to(acts.dtype) for part in (made.left, made.right, made.shift)))

    def act(self, written: Tensor, inputs: Tensor | None = None) -> Tensor:
        moved = written + self._through(written)
        return moved if self.shift is None else moved + self.shift.to(written)

    def _through(self, vectors: Tensor) -> Tensor:
        return (vectors @ self.right.to(vectors).T) @ self.left.to(vectors).T

    def weight_update(self, weight: Weight) -> LowRank | None:
        b = self.left.to(weight).expand(*weight.shape[:-2], -1, -1)
        axes = "expert out in" if weight.ndim == 3 else "out in"
        return LowRank(b.contiguous(), self.right.to(weight) @ weight, axes)

    def bias_update(self, bias: Tensor | None, like: Weight) -> Tensor | None:
        if bias is None:
            return None if self.shift is None else self.shift.to(like)
        return self.act(bias) - bias


def _roots(covariance: Float[Tensor, "d d"]) -> tuple[Tensor, Tensor]:
    """``Σ^{1/2}`` and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(covariance)
    inside = values > RANK_TOLERANCE * values[-1].clamp_min(0.0)
    scale = values[inside].sqrt()
    vectors = vectors[:, inside]
    return (vectors * scale) @ vectors.T, (vectors / scale) @ vectors.T
