"""Least-squares concept erasure: the smallest affine change after which no linear reader sees a class."""

from __future__ import annotations

import torch
from jaxtyping import Float
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from interp.estimators.base import Array, Estimator, Found, Layer, flat
from interp.estimators.spectral import Shrinkage, shrunk_solve


class Leace(Estimator):
    """LEACE of a binary concept (Belrose et al. 2306.03819, theorem 4.3).

    ``erase(x) = x − W⁺ΠW (x − μ)`` with ``W = Σ_xx^{−½}`` and Π the projection on ``W Σ_xz``. With two
    classes ``Σ_xz ∝ Δ`` and this is ``x − Δ (q·(x − μ))``, ``q = Σ⁻¹Δ / (ΔᵀΣ⁻¹Δ)``: rank 1, an oblique
    projection. After it the class means of the fit rows are equal, whatever Σ, since ``q·Δ = 1``.

    Attributes: vector_ = Δ; read_ = q; mean_ = μ, the mean of all rows; left_ ``[*layers, d, 1]`` and
    right_ ``[*layers, 1, d]``, ``matrix_ = I − left_ right_``; correlation_ ``[*layers]``, the multiple
    correlation of the class with the rows. Where ``correlation_ · √(share⁺ share⁻)``, the singular value
    of ``W Σ_xz``, is at most ``svd_tol``, nothing is erased and the factors are 0, as in the reference.

    Differs from the reference in the shrinkage: Ledoit–Wolf (or a number; 0 needs more rows than
    columns) about ``(tr Σ / d) I``, in place of an optimal linear one; the dual serves n < d.
    """

    mean_: Tensor
    left_: Tensor
    right_: Tensor
    correlation_: Tensor

    least_rows = 2

    def __init__(self, shrinkage: Shrinkage = "ledoit-wolf", svd_tol: float = 0.01) -> None:
        self.shrinkage: Shrinkage = shrinkage
        self.svd_tol = svd_tol

    def _layer(self, layer: Layer) -> Found:
        rows, gap = torch.cat([layer.pos, layer.neg]), layer.gap
        centre = rows.mean(0)
        solved, _ = shrunk_solve(rows - centre, gap, self.shrinkage)
        inverse_size = gap @ solved
        shares = len(layer.pos) * len(layer.neg) / len(rows) ** 2
        read = solved / inverse_size
        # ‖W Σ_xz‖ for z in {0, 1}: Σ_xz = shares · Δ.
        strength = shares * inverse_size.sqrt()
        kept = (strength > self.svd_tol).double()
        extra = {
            "mean": centre,
            "left": kept * gap[:, None],
            "right": kept * read[None, :],
            "correlation": strength / shares**0.5,
        }
        return Found(gap, read, extra=extra)

    def erase(self, X: Array) -> Float[Tensor, "*layers n d"]:
        """Rows without the class, same shape and dtype as ``X [*layers, n, d]``; computed in float64."""
        check_is_fitted(self, "left_")
        rows = flat(X, "X")
        self._check_layers(X)
        # Layer axes flattened; reshape also adds the one that a single layer lacks.
        d = rows.shape[-1]
        fitted = (v.reshape(-1, d).double() for v in (self.mean_, self.right_, self.left_))
        erased = [
            (x.double() - torch.outer((x.double() - centre) @ right, left)).to(x.dtype)
            for x, centre, right, left in zip(rows, *fitted, strict=True)
        ]
        return torch.stack(erased).reshape(tuple(X.shape))

    @property
    def matrix_(self) -> Float[Tensor, "*layers d d"]:
        """``I − left_ right_``, formed when asked for: ``erase(x) = matrix_ x + bias_``."""
        check_is_fitted(self, "left_")
        d = self.left_.shape[-2]
        return torch.eye(d, dtype=self.left_.dtype, device=self.left_.device) - (
            self.left_ @ self.right_
        )

    @property
    def bias_(self) -> Float[Tensor, "*layers d"]:
        check_is_fitted(self, "left_")
        return (self.left_ @ (self.right_ @ self.mean_[..., None]))[..., 0]
