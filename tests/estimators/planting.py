"""Random classes with a planted truth, and the estimators that the laws run over."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from interp.estimators import (
    CCS,
    LDA,
    SOM,
    DiffMeans,
    Estimator,
    IterativeProjection,
    KMeans2,
    Leace,
    Logistic,
    MeanCentred,
    PCADiff,
    PCASubspace,
    RandomDirection,
    RandomOrderPCA,
    SymmetricPCA,
)

SEEDS = st.integers(0, 2**31 - 1)
LAWS = settings(max_examples=4, deadline=None, derandomize=True)

EVERY: dict[str, Estimator] = {
    "mean": DiffMeans(),
    "trimmed": DiffMeans("trimmed"),
    "geometric median": DiffMeans("geometric median"),
    "mean-centred": MeanCentred(),
    "symmetric PCA": SymmetricPCA(),
    "random-order PCA": RandomOrderPCA(seed=3),
    "PCA of centred differences": PCADiff(),
    "LDA": LDA(),
    "LDA, fixed": LDA(0.3),
    "logistic": Logistic(tol=1e-10),
    "2-means": KMeans2(),
    "CCS": CCS(restarts=2, epochs=15, lr=0.05, seed=3),
    "LEACE": Leace(),
    "LEACE, fixed": Leace(0.3),
    "SOM": SOM(2, 2, k=2, steps=60, lr=0.1, seed=3),
    "iterative projection": IterativeProjection(k=2),
    "PCA subspace": PCASubspace(k=2),
    "PCA subspace, centred": PCASubspace(k=2, of="centred differences"),
    "random": RandomDirection(seed=3),
}


def without(*names: str) -> list[str]:
    assert set(names) <= set(EVERY)
    return [name for name in EVERY if name not in names]


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def pair_of_classes(
    *shape: int, seed: int, shift: float = 3.0, topic: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Paired rows ``[*layers, n, d]``: a shared topic, noise with a falling spectrum, a planted shift."""
    d = shape[-1]
    scale = torch.arange(1, d + 1).double().pow(-0.3)
    noise = normal(2, *shape, seed=seed) * scale
    shared = topic * normal(*shape, seed=seed + 1) + normal(d, seed=seed + 2)
    delta = normal(*shape[:-2], 1, d, seed=seed + 3)
    delta = shift * delta / delta.norm(dim=-1, keepdim=True)
    return noise[0] + shared + delta, noise[1] + shared


def cosine(one: Tensor, two: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(one.double(), two.double(), dim=-1)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> bool:
    gap = (actual.double() - expected.double()).norm()
    return bool(gap <= tolerance * (1.0 + expected.double().norm()))


def rotation(d: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(d, d, seed=seed))[0]


def auroc(pos: Tensor, neg: Tensor) -> float:
    """Share of (positive, negative) pairs in the right order."""
    return (pos[:, None] > neg[None]).double().mean().item()
