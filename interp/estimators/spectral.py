"""Linear algebra of few rows in many columns: principal rows, shrunk covariances, row coordinates.

With n < d rows everything goes through the n×n gram matrix; nothing of size d×d is formed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import NoDirection
from interp.types import Acts, Vector

Shrinkage = float | Literal["ledoit-wolf"]

SMALLEST_SHARE = 1e-12
"""Eigenvalues below this share of the largest are float64 round-off of a gram matrix."""


def side_product(rows: Acts) -> Float[Tensor, "side side"]:
    """``rows rowsᵀ`` or ``rowsᵀ rows``, whichever is smaller; they share all nonzero eigenvalues."""
    n, d = rows.shape
    return rows @ rows.T if n < d else rows.T @ rows


def principal_rows(rows: Acts, k: int) -> Float[Tensor, "k d"]:
    """The k top right-singular vectors, orthonormal, largest first (centre the rows yourself for PCA).

    Raises ValueError for k < 1 and NoDirection when the rows span fewer than k dimensions.
    """
    n, d = rows.shape
    if k < 1:
        raise ValueError(f"needs at least one component, got k = {k}")
    values, vectors = torch.linalg.eigh(side_product(rows))
    rank = int((values > SMALLEST_SHARE * values[-1]).sum()) if values[-1] > 0 else 0
    if rank < k:
        raise NoDirection(f"these rows span {rank} dimensions, fewer than k = {k}; ask for fewer")
    top = vectors[:, -k:].flip(-1)
    if n >= d:
        return top.T.contiguous()
    # QR also mends the round-off of small singular values; it may flip signs, which mean nothing here.
    return torch.linalg.qr(rows.T @ top).Q.T.contiguous()


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Rows in an orthonormal frame of their own span: ``rows = coordinates @ frame`` (None: identity).

    Distances and inner products stay the same, so a method that knows nothing else may work on
    min(n, d) coordinates in place of d.
    """

    coordinates: Float[Tensor, "n r"]
    frame: Float[Tensor, "r d"] | None

    @classmethod
    def of(cls, rows: Acts) -> Span:
        if len(rows) >= rows.shape[1]:
            return cls(rows, None)
        q, r = torch.linalg.qr(rows.T)
        return cls(r.T.contiguous(), q.T)

    def lift(self, points: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch d"]:
        """Points given in coordinates, in the space of the rows."""
        return points if self.frame is None else points @ self.frame


def ledoit_wolf(rows: Acts) -> float:
    """Ledoit–Wolf shrinkage intensity of centred rows, in [0, 1] (J. Multivar. Anal. 88, 2004).

    From ``‖XXᵀ‖_F`` and the row norms alone; equals ``sklearn.covariance.ledoit_wolf_shrinkage`` with
    ``assume_centered=True``.
    """
    return _intensity(rows, side_product(rows))


def shrunk_solve(
    rows: Acts, rhs: Float[Tensor, " d"], shrinkage: Shrinkage
) -> tuple[Vector, float]:
    """``Σ⁻¹ rhs`` and the shrinkage s used; ``Σ = (1−s) XᵀX/n + s (tr XᵀX / nd) I`` of centred rows X.

    n < d goes through the n×n dual (Woodbury). Raises ValueError for s outside [0, 1] and for a Σ
    that cannot be inverted: rows without variance, or s = 0 with too few rows.
    """
    n, d = rows.shape
    product = side_product(rows)
    if shrinkage == "ledoit-wolf":
        share = _intensity(rows, product)
    elif not isinstance(shrinkage, str) and 0.0 <= shrinkage <= 1.0:
        share = float(shrinkage)
    else:
        raise ValueError(f"shrinkage must be in [0, 1] or 'ledoit-wolf', got {shrinkage!r}")
    ridge = share * product.trace().item() / (n * d)
    product = product * ((1.0 - share) / n)
    product.diagonal().add_(ridge)
    factor = _factor(product, singular=n < d and ridge == 0.0)
    if n >= d:
        return torch.cholesky_solve(rhs[:, None], factor)[:, 0], share
    inner = torch.cholesky_solve((rows @ rhs)[:, None], factor)[:, 0]
    return (rhs - rows.T @ inner * ((1.0 - share) / n)) / ridge, share


def _intensity(rows: Acts, product: Float[Tensor, "side side"]) -> float:
    n, d = rows.shape
    mu = product.trace().item() / (n * d)
    squared = product.square().sum().item() / n**2
    fourth = rows.square().sum(-1).square().sum().item()
    noise = (fourth / n - squared) / (n * d)
    spread = squared / d - mu**2
    if d == 1 or spread <= 0.0:
        return 0.0
    return max(min(noise, spread) / spread, 0.0)


def _factor(sigma: Float[Tensor, "side side"], singular: bool) -> Float[Tensor, "side side"]:
    """Cholesky factor; ValueError when there is none, or only by round-off."""
    factor, info = torch.linalg.cholesky_ex(sigma)
    size = factor.diagonal()
    if singular or int(info) or size.min() < 1e-7 * size.max() or size.max() == 0:
        raise ValueError(
            "the covariance has no inverse; give more rows than columns, or shrinkage > 0 "
            "(rows that never vary have none at all)"
        )
    return factor
