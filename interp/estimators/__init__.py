"""Estimators: two classes of activations in, a direction or a subspace out. No model is seen here.

    fitted = DiffMeans().fit(X_pos, X_neg)      # [*layers, n, d] and [*layers, m, d]
    fitted.unit_, fitted.score(X)               # [*layers, d] and [*layers, n]

What every one of them gives is said at :class:`Estimator`.
"""

from __future__ import annotations

from types import MappingProxyType

from interp.estimators.base import Estimator
from interp.estimators.bootstrap import Bootstrap
from interp.estimators.components import PCADiff, RandomOrderPCA, SymmetricPCA
from interp.estimators.discriminants import LDA, Logistic
from interp.estimators.erasure import Leace
from interp.estimators.means import DiffMeans, MeanCentred, RandomDirection
from interp.estimators.pipeline import Probe
from interp.estimators.stages import (
    Biproject,
    Chain,
    LayerLerp,
    OrthogonaliseTo,
    Stage,
    Winsorise,
    biproject,
    layer_lerp,
)
from interp.estimators.subspaces import SOM, IterativeProjection, PCASubspace
from interp.estimators.unsupervised import CCS, KMeans2

ESTIMATORS = MappingProxyType(
    {
        "diff-means": DiffMeans,
        "mean-centred": MeanCentred,
        "symmetric-pca": SymmetricPCA,
        "random-order-pca": RandomOrderPCA,
        "pca-diff": PCADiff,
        "lda": LDA,
        "logistic": Logistic,
        "kmeans": KMeans2,
        "ccs": CCS,
        "leace": Leace,
        "som": SOM,
        "iterative-projection": IterativeProjection,
        "pca-subspace": PCASubspace,
        "random": RandomDirection,
    }
)
"""Name → class; each can be made without arguments."""

__all__ = [
    "CCS",
    "ESTIMATORS",
    "LDA",
    "SOM",
    "Biproject",
    "Bootstrap",
    "Chain",
    "DiffMeans",
    "Estimator",
    "IterativeProjection",
    "KMeans2",
    "LayerLerp",
    "Leace",
    "Logistic",
    "MeanCentred",
    "OrthogonaliseTo",
    "PCADiff",
    "PCASubspace",
    "Probe",
    "RandomDirection",
    "RandomOrderPCA",
    "Stage",
    "SymmetricPCA",
    "Winsorise",
    "biproject",
    "layer_lerp",
]
