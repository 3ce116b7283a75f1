"""Estimators on all layers at once, against scikit-learn's linear discriminant a layer at a time.

    .venv/bin/python benchmarks/estimators.py [--rounds 5] [--rows 400]

narrow: 30 layers × 576, 400 + 400 float32 rows. wide: 32 layers × 4096, ``--rows`` in each class.

Floors. Means: each row read once, 4·L·(n+m)·d bytes (narrow 55 MB, wide 420 MB at 400 + 400). LDA, N =
n + m rows: one product of the smaller side, N·d·min(N, d) multiply-adds a layer if symmetry is used
(narrow 30 × 0.27 G; wide 32 × 2.6 G at 400 + 400, a quarter of that at 200 + 200), twice as many as we
use it not, and a Cholesky of min(N, d)³/3. Where N < d, d×d is never formed; scikit-learn always does.
Targets on two threads: narrow means 50 ms, narrow LDA 3 s, wide 10 s.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from timing import hardware, paired, report
from torch import Tensor

from interp.estimators import LDA, DiffMeans, Estimator, KMeans2, Leace, Logistic, SymmetricPCA


def classes(layers: int, rows: int, d: int) -> tuple[Tensor, Tensor]:
    """Two planted classes with a spectrum that falls, as that of a residual stream does."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, d + 1).float().pow(-0.5)
    pos, neg = (torch.randn(layers, rows, d, generator=generator) * scale for _ in range(2))
    return pos.add_(0.1 * torch.randn(layers, 1, d, generator=generator)), neg


def ours(estimator: Estimator, data: tuple[Tensor, Tensor]) -> Callable[[], object]:
    return lambda: estimator.fit(*data)


def theirs(data: tuple[Tensor, Tensor], layers: int) -> Callable[[], object]:
    """scikit-learn's shrunk LDA on the first ``layers`` layers."""

    def fit() -> None:
        for pos, neg in zip(data[0][:layers], data[1][:layers], strict=True):
            labels = [1] * len(pos) + [0] * len(neg)
            model = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto")
            model.fit(torch.cat([pos, neg]).numpy(), labels)

    return fit


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--wide-rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=400)
    given = parser.parse_args()
    result: dict[str, Any] = {"hardware": hardware(), "rows": given.rows, "variants": {}}

    data = classes(30, 400, 576)
    fits = {
        "narrow, difference of means": ours(DiffMeans(), data),
        "narrow, symmetric PCA": ours(SymmetricPCA(), data),
        "narrow, LDA": ours(LDA(), data),
        "narrow, LEACE": ours(Leace(), data),
        "narrow, scikit-learn LDA": theirs(data, 30),
    }
    result["variants"] |= paired(fits, against="narrow, LDA", rounds=given.rounds)
    slow = {
        "narrow, geometric median": ours(DiffMeans("geometric median"), data),
        "narrow, 2-means": ours(KMeans2(), data),
        "narrow, logistic": ours(Logistic(), data),
    }
    result["variants"] |= paired(slow, against="narrow, logistic", rounds=1, warmups=0)

    data = classes(32, given.rows, 4096)
    fits = {
        "wide, difference of means": ours(DiffMeans(), data),
        "wide, symmetric PCA": ours(SymmetricPCA(), data),
        "wide, LDA": ours(LDA(), data),
        "wide, LEACE": ours(Leace(), data),
    }
    result["variants"] |= paired(fits, against="wide, LDA", rounds=given.wide_rounds)
    slow = {
        "wide, logistic": ours(Logistic(), data),
        "wide, scikit-learn LDA, 1 layer of 32": theirs(data, 1),
    }
    result["variants"] |= paired(slow, against="wide, logistic", rounds=1, warmups=0)
    report("estimators", result)


if __name__ == "__main__":
    main()
