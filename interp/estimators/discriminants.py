"""Directions that a classifier reads with: linear discriminant and logistic regression."""

from __future__ import annotations

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from interp.estimators.base import Estimator, Found, Layer
from interp.estimators.spectral import Shrinkage, Span, shrunk_solve


class LDA(Estimator):
    """Linear discriminant (the "mass-mean probe" of 2310.06824): read ``Σ⁻¹Δ``, write ``Δ = μ⁺ − μ⁻``.

    Σ: pooled covariance of the rows about their class means, divided by n + m, shrunk towards
    ``(tr Σ / d) I``. shrinkage: "ledoit-wolf" (intensity of the pooled rows) or a number in [0, 1]; 0
    needs more rows than columns. ``score`` is the log odds of two Gaussians with equal priors.
    Attribute ``shrinkage_ [*layers]``: the intensity used.

    Differs from the reference, which takes a pseudo-inverse and degrades for n ≤ d, and from
    scikit-learn's, which shrinks each class on its own. Fewer rows than columns: n×n dual, O(n²d).
    """

    shrinkage_: Tensor

    least_rows = 2

    def __init__(self, shrinkage: Shrinkage = "ledoit-wolf") -> None:
        self.shrinkage: Shrinkage = shrinkage

    def _layer(self, layer: Layer) -> Found:
        read, used = shrunk_solve(layer.within(), layer.gap, self.shrinkage)
        return Found(layer.gap, read, extra={"shrinkage": torch.tensor(used).double()})


class Logistic(Estimator):
    """Logistic regression: read with the weights, write with the class gap.

    scikit-learn's L-BFGS, a layer at a time, on rows minus the midpoint of the class means and over
    their root mean square, no intercept, classes weighted equally; ``C`` is scikit-learn's inverse L2
    penalty in those units, so that the result does not depend on the scale of the rows. ``score`` is
    the logit. Fewer rows than columns: solved in the span of the rows, where the optimum lies.

    The recipe of the probing papers (AdamW, lr 1e-3, weight decay 0.1, 1000 epochs, no bias) differs:
    it stops on the way to another optimum, at a point that depends on the scale of the rows.
    """

    def __init__(self, C: float = 1.0, tol: float = 1e-6, max_iter: int = 1000) -> None:
        self.C = C
        self.tol = tol
        self.max_iter = max_iter

    def _layer(self, layer: Layer) -> Found:
        rows = torch.cat([layer.pos, layer.neg]) - layer.midpoint
        scale = rows.square().mean().sqrt()
        span = Span.of(rows / scale)
        labels = torch.cat([torch.ones(len(layer.pos)), torch.zeros(len(layer.neg))])
        return Found(layer.gap, span.lift(self._weights(span.coordinates, labels)) / scale)

    def _weights(self, coordinates: Tensor, labels: Tensor) -> Tensor:
        model = LogisticRegression(
            C=self.C,
            tol=self.tol,
            max_iter=self.max_iter,
            fit_intercept=False,
            class_weight="balanced",
        )
        model.fit(coordinates.numpy(force=True), labels.numpy())
        return torch.from_numpy(model.coef_[0]).to(coordinates)
