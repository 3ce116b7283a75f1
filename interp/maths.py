"""Pure tensor functions: directions from activations, and the least-disturbance probe.

No function here sees a model. Sums run in float64 whatever the dtype of the activations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import NoDirection
from interp.types import Acts, Vector

SMALLEST_NORM = 1e-12
INDEPENDENT = 1e-5
"""Smallest share of a vector outside the span of the ones before it."""


def unit(vector: Vector) -> Vector:
    """``vector / ‖vector‖``. NoDirection for a zero or non-finite vector: it has no direction."""
    wide = vector.double()
    length = wide.norm()
    if not torch.isfinite(length) or length < SMALLEST_NORM:
        raise NoDirection(
            f"this vector has norm {length.item():.3g} and no direction; at the last template token the "
            "embedding is the same for every prompt: read at the output of a block"
        )
    return (wide / length).to(vector.dtype)


def mean(acts: Acts) -> Vector:
    """Mean over rows, summed in float64, returned in float64."""
    return acts.double().mean(0)


def difference_of_means(pos: Acts, neg: Float[Tensor, "m d"]) -> Vector:
    """``E[pos] − E[neg]`` in float64 (not normalised); raises ValueError for an empty class."""
    if not len(pos) or not len(neg):
        raise ValueError("difference of means needs at least one row in each class")
    return mean(pos) - mean(neg)


def orthogonalise(vector: Vector, *against: Vector) -> Vector:
    """``vector`` without its component in the span of ``against`` (QR first, so order is irrelevant)."""
    basis, _ = torch.linalg.qr(torch.stack([v.double() for v in against], 1))
    wide = vector.double()
    # Twice: one pass leaves round-off of the size of the part removed.
    for _ in range(2):
        wide = wide - basis @ (basis.T @ wide)
    return wide.to(vector.dtype)


def winsorise(acts: Acts, quantile: float) -> Acts:
    """Clip each row's entries to its own ``quantile`` of ``|x|`` (a few coordinates dominate streams).

    quantile in (0, 1]; 1 changes nothing.
    """
    if not 0.0 < quantile <= 1.0:
        raise ValueError(f"winsor quantile must be in (0, 1], got {quantile}")
    limit = torch.quantile(acts.double().abs(), quantile, dim=-1, keepdim=True).to(acts.dtype)
    return acts.clamp(-limit, limit)


def through_gain(direction: Vector, gain: Vector | None, offset: float) -> Vector:
    """Direction to remove before a post-norm so that nothing of ``direction`` is left after it.

    The norm's output is ``(offset + gain) ⊙ x / rms(x)``; its component along d vanishes exactly when
    x has none along ``(offset + gain) ⊙ d``.
    """
    if gain is None:
        return direction
    wide = direction.double() * (offset + gain.double())
    return unit(wide).to(direction.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Ridged:
    """``Σ = E[aaᵀ] + εI`` of rows a ``[n, d]``, factorised once (float64); ``ε = ridge · mean diag E[aaᵀ]``.

    Fewer rows than columns go through the n×n dual (Woodbury), so the cost is O(n²d) and Σ is never formed;
    then rows are kept. factor: Cholesky factor of Σ, or of ``AAᵀ + nεI``; None where all rows are zero.
    """

    eps: float
    factor: Tensor | None
    rows: Tensor | None

    @classmethod
    def of(cls, rows: Float[Tensor, "n d"], ridge: float) -> Ridged:
        """Raises ValueError for ridge ≤ 0."""
        if ridge <= 0:
            raise ValueError(f"ridge must be positive, got {ridge}")
        wide = rows.double()
        n, d = wide.shape
        eps = ridge * wide.square().sum().item() / (n * d)
        if eps == 0.0:
            return cls(eps, None, None)
        dual = n < d
        matrix = wide @ wide.T if dual else wide.T @ wide / n
        matrix.diagonal().add_(n * eps if dual else eps)
        return cls(eps, torch.linalg.cholesky(matrix), wide if dual else None)

    def solve(self, columns: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
        """``Σ⁻¹ columns``; zeros where all rows were zero and there is nothing to solve."""
        if self.factor is None:
            return torch.zeros_like(columns)
        if self.rows is None:
            return torch.cholesky_solve(columns, self.factor)
        inner = torch.cholesky_solve(self.rows @ columns, self.factor)
        return (columns - self.rows.T @ inner) / self.eps


def least_disturbance_probe(
    shift: Vector, comply: Float[Tensor, "n d"] | Ridged, ridge: float = 0.0
) -> Float[Tensor, " d"]:
    """``q = Σ⁻¹Δ / (ΔᵀΣ⁻¹Δ)`` with ``Σ = E[aaᵀ] + εI``, ``ε = ridge · mean diag E[aaᵀ]`` (float64).

    Among all q with ``q·Δ = 1`` it minimises ``E_comply[(q·a)²] + ε‖q‖²``: the edit built on it moves the
    mean difference Δ fully and disturbs comply inputs least in the least-squares sense.

    shift: Δ = E_refuse[a] − E_comply[a], ``[d]``. comply: rows a, ``[n, d]``, or Σ made of them already.
    Returns zeros when the classes do not differ. Raises ValueError for ridge ≤ 0.
    """
    delta = shift.double()
    metric = comply if isinstance(comply, Ridged) else Ridged.of(comply, ridge)
    solved = metric.solve(delta.unsqueeze(-1)).squeeze(-1)
    if metric.factor is None or delta.norm() < SMALLEST_NORM:
        return torch.zeros_like(delta)
    return solved / (delta @ solved)


def least_disturbance_probes(
    shifts: Float[Tensor, "k d"], comply: Float[Tensor, "n d"] | Ridged, ridge: float = 0.0
) -> Float[Tensor, "k d"]:
    """Rows ``q_i`` with ``q_i·Δ_j = δ_ij``: ``Q = (DᵀΣ⁻¹D)⁻¹DᵀΣ⁻¹``, ``D = [Δ_1 … Δ_k]`` (float64).

    Several shifts at once: of all ΔW with ``ΔW Δ_j = t_j`` for every j, ``ΔW = Σ_j t_j q_jᵀ`` has the least
    ``E_comply‖ΔWa‖² + ε‖ΔW‖²``. One shift gives :func:`least_disturbance_probe`.
    A shift that is zero or in the span of those before it can have no effect of its own: NoDirection.
    Raises ValueError for ridge ≤ 0.
    """
    wide = shifts.double()
    metric = comply if isinstance(comply, Ridged) else Ridged.of(comply, ridge)
    orthonormal(wide)  # NoDirection where the shifts are dependent
    if metric.factor is None:
        return torch.zeros_like(wide)
    solved = metric.solve(wide.T)
    return torch.linalg.solve(wide @ solved, solved.T)


RIDGES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def left_out_disturbance(
    shift: Vector, comply: Float[Tensor, "n d"], ridges: Sequence[float] = RIDGES
) -> Float[Tensor, " ridges"]:
    """``mean_i (q₍₋ᵢ₎·aᵢ)²`` for each ridge: how far a comply row that q has not seen is moved (float64).

    Closed form, no refit: with ``x = (S + ε(n−1)/n I)⁻¹Δ``, ``S = AᵀA/n`` and the leverages
    ``hᵢ = aᵢᵀ(S + …)⁻¹aᵢ/n``, Sherman and Morrison give
    ``q₍₋ᵢ₎·aᵢ = (aᵢ·x)/(1−hᵢ) / (Δ·x + (aᵢ·x)²/(n(1−hᵢ)))``. One eigendecomposition of the n×n Gram
    matrix serves all ridges. ε is that of all rows and Δ stays as given, though both contain row i.
    Raises ValueError for fewer than two rows and a ridge that is not positive.
    """
    delta, rows = shift.double(), comply.double()
    n, d = rows.shape
    if n < 2 or min(ridges) <= 0:
        raise ValueError("leaving one out needs at least two rows, and ridges above 0")
    values, vectors = torch.linalg.eigh(rows @ rows.T / n)
    along = vectors.T @ (rows @ delta)
    found = []
    for ridge in ridges:
        eps = ridge * rows.square().sum() / (n * d) * (n - 1) / n
        seen = vectors @ (along / (values + eps))  # aᵢ·x
        leverage = vectors.square() @ (values / (values + eps))
        whole = (delta @ delta - (along.square() / (values + eps)).sum() / n) / eps  # Δ·x
        left = 1.0 - leverage
        found.append((seen / left / (whole + seen.square() / (n * left))).square().mean())
    return torch.stack(found)


def best_ridge(
    shift: Vector, comply: Float[Tensor, "n d"], ridges: Sequence[float] = RIDGES
) -> float:
    """The ridge whose probe moves left-out comply rows least (:func:`left_out_disturbance`)."""
    return ridges[int(left_out_disturbance(shift, comply, ridges).argmin())]


def weighted(parts: Sequence[tuple[Float[Tensor, "_ d"], float]]) -> Float[Tensor, "total d"]:
    """Rows of several samples, scaled so that their second moment is the weighted mean of the samples'.

    ``E[aaᵀ] = Σ_k w_k E_k[aaᵀ] / Σ_k w_k``, whatever the number of rows that each sample has.
    """
    kept = [(rows, weight) for rows, weight in parts if weight > 0 and len(rows)]
    if not kept:
        raise ValueError(
            "a weighted sample needs at least one part with rows and a positive weight"
        )
    if len(kept) == 1:
        return kept[0][0]
    total = sum(len(rows) for rows, _ in kept)
    share = sum(weight for _, weight in kept)
    return torch.cat([rows * math.sqrt(w / share * total / len(rows)) for rows, w in kept])


def frobenius(value: Tensor) -> float:
    """``‖value‖_F``, summed in float64 by pieces: a whole copy in float64 would double what is held."""
    parts = value.reshape(-1).split(1 << 24)
    return math.sqrt(sum(part.double().square().sum().item() for part in parts))


def orthonormal(vectors: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    """Gram–Schmidt in the order given, each row keeping its sign; the span stays the same.

    Solved in float64, returned in the dtype of ``vectors``. NoDirection for a vector that is zero, not
    finite or dependent on those before it.
    """
    wide = vectors.double()
    wide = wide / wide.norm(dim=-1, keepdim=True)  # NaN for a zero row: caught below
    if not len(wide) or not torch.isfinite(wide).all():
        raise NoDirection("a subspace needs vectors that are finite and not zero; leave those out")
    q, r = torch.linalg.qr(wide.T)
    size = r.diagonal()
    outside = size.abs()  # of each vector; fewer than vectors where these outnumber d_model
    within = torch.nn.functional.pad(
        outside < INDEPENDENT, (0, len(wide) - len(outside)), value=True
    )
    if within.any():
        raise NoDirection(
            f"vector {int(within.int().argmax())} of the subspace (counted from 0) lies in the span of "
            "those before it; leave it out"
        )
    return (q * size.sign()).T.contiguous().to(vectors.dtype)
