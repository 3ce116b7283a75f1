"""How well two classes of rows come apart, and how directions lie to each other. No model is seen here.

Shapes: ``*layers`` any number of leading layer axes (none too), n and m rows or scores of the two
classes, d the width. Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from sklearn.metrics import silhouette_score
from torch import Tensor

from interp.estimators import DiffMeans, Estimator
from interp.estimators.base import fresh
from interp.estimators.means import geometric_median
from interp.estimators.spectral import principal_rows
from interp.maths import orthogonalise, unit

Scores = Float[Tensor, "*layers n"]
OtherScores = Float[Tensor, "*layers m"]
Rows = Float[Tensor, "*layers n d"]
OtherRows = Float[Tensor, "*layers m d"]
Measure = Callable[[Tensor, Tensor], Tensor]
"""Scores of both classes in, one number a layer out: :func:`auroc`, :func:`d_prime`."""


# --- scores ------------------------------------------------------------------------------------


def auroc(pos: Scores, neg: OtherScores) -> Float[Tensor, "*layers"]:
    """Chance that a positive row scores above a negative one, ties counted as a half (Mann–Whitney).

    Raises ValueError for an empty class or a score that is NaN.
    """
    _check(pos, neg, least=1)
    pos, ranked = pos.double().contiguous(), neg.double().sort(dim=-1).values.contiguous()
    below = torch.searchsorted(ranked, pos)
    not_above = torch.searchsorted(ranked, pos, right=True)
    return (below + not_above).double().mean(-1) / (2 * neg.shape[-1])


def d_prime(pos: Scores, neg: OtherScores) -> Float[Tensor, "*layers"]:
    """``(mean⁺ − mean⁻) / √((var⁺ + var⁻)/2)`` with unbiased variances; needs 2 scores a class."""
    _check(pos, neg, least=2)
    pos, neg = pos.double(), neg.double()
    return (pos.mean(-1) - neg.mean(-1)) / ((pos.var(-1) + neg.var(-1)) / 2).sqrt()


def interval(
    measure: Measure,
    pos: Scores,
    neg: OtherScores,
    *,
    n_boot: int = 1000,
    level: float = 0.95,
    paired: bool = False,
    seed: int = 0,
) -> Float[Tensor, "*layers 2"]:
    """Percentile bootstrap interval (Efron 1979) of a measure, the direction being held fixed.

    Rows are drawn with replacement within each class; ``paired`` draws row i of both together, for
    matched prompts. All layers see the same draws. Raises ValueError for paired classes of other sizes.
    """
    n, m = pos.shape[-1], neg.shape[-1]
    if paired and n != m:
        raise ValueError(f"pairs are drawn together, but the classes have {n} and {m} rows")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(n, (n_boot, n), generator=generator)
    others = rows if paired else torch.randint(m, (n_boot, m), generator=generator)
    values = measure(pos[..., rows], neg[..., others])
    tail = (1.0 - level) / 2
    ends = torch.tensor([tail, 1.0 - tail], dtype=values.dtype)
    return torch.quantile(values, ends, dim=-1).movedim(0, -1)


def _check(pos: Tensor, neg: Tensor, least: int) -> None:
    for name, scores in (("positive", pos), ("negative", neg)):
        if scores.shape[-1] < least:
            raise ValueError(f"the {name} class has {scores.shape[-1]} scores, needs {least}")
        if scores.isnan().any():
            raise ValueError(f"a score of the {name} class is NaN")


# --- directions --------------------------------------------------------------------------------


def cosines(units: Float[Tensor, "k d"]) -> Float[Tensor, "k k"]:
    """Cosine of every direction with every other; the rows may have any norm but 0."""
    wide = torch.stack([unit(row.double()) for row in units])
    return wide @ wide.T


def split_half_cosine(
    estimator: Estimator, X_pos: Rows, X_neg: OtherRows, n: int, seed: int = 0
) -> Float[Tensor, "*layers"]:
    """Cosine of the directions fitted on two disjoint samples of ``n`` rows a class.

    Classes of one size are taken as pairs, which stay together. Raises ValueError where a class has
    fewer than 2n rows.
    """
    have = min(X_pos.shape[-2], X_neg.shape[-2])
    if 2 * n > have or n < 1:
        raise ValueError(f"two disjoint samples of {n} rows need {2 * n} in each class, got {have}")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(X_pos.shape[-2], generator=generator)
    paired = X_pos.shape[-2] == X_neg.shape[-2]
    others = rows if paired else torch.randperm(X_neg.shape[-2], generator=generator)
    halves = [
        fresh(estimator, DiffMeans)
        .fit(X_pos[..., rows[part], :], X_neg[..., others[part], :])
        .unit_
        for part in (slice(0, n), slice(n, 2 * n))
    ]
    return (halves[0].double() * halves[1].double()).sum(-1)


# --- rows --------------------------------------------------------------------------------------


def silhouette(X_pos: Rows, X_neg: OtherRows) -> Float[Tensor, "*layers"]:
    """Mean silhouette coefficient of the two classes (Rousseeuw 1987), Euclidean, −1 to 1."""
    labels = [1] * X_pos.shape[-2] + [0] * X_neg.shape[-2]
    values = [
        silhouette_score(torch.cat([p, q]).double().numpy(force=True), labels)
        for p, q in zip(_layers(X_pos), _layers(X_neg), strict=True)
    ]
    return torch.tensor(values, dtype=torch.float64).reshape(X_pos.shape[:-2])


def plane(
    X_pos: Float[Tensor, "n d"], X_neg: Float[Tensor, "m d"]
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "m 2"]]:
    """Rows in the plane of the difference of means and the first principal component across it.

    The origin lies halfway between the class means. The second axis is the direction of most variance
    of all rows about their mean once the first is taken out; its sign means nothing.
    """
    pos, neg = X_pos.double(), X_neg.double()
    across = unit(pos.mean(0) - neg.mean(0))
    rows = torch.cat([pos, neg])
    rest = rows - rows.mean(0)
    along = principal_rows(rest - (rest @ across)[:, None] * across, 1)[0]
    axes = torch.stack([across, orthogonalise(along, across)], 1)
    midpoint = (pos.mean(0) + neg.mean(0)) / 2
    return (pos - midpoint) @ axes, (neg - midpoint) @ axes


def residual_geometry(X_pos: Rows, X_neg: OtherRows) -> list[dict[str, int | float]]:
    """One row a layer with what heretic's table of residual geometry shows (p-e-w/heretic, README).

    ``layer``; ``cos_means``, ``cos_pos_difference``, ``cos_neg_difference``: cosines of the class means
    μ⁺, μ⁻ with each other and with μ⁺ − μ⁻; ``norm_pos``, ``norm_neg``, ``norm_difference``: their
    norms; the same six with ``median_`` in front for geometric medians in place of means;
    ``silhouette``. heretic's good prompts are the negative class, its bad ones the positive.
    """
    apart = silhouette(X_pos, X_neg).reshape(-1).tolist()
    rows = []
    for layer, (pos, neg) in enumerate(zip(_layers(X_pos), _layers(X_neg), strict=True)):
        means = _triangle(pos.double().mean(0), neg.double().mean(0))
        centres = _triangle(*(geometric_median(side[None])[0] for side in (pos, neg)))
        medians = {f"median_{name}": value for name, value in centres.items()}
        rows.append({"layer": layer, **means, **medians, "silhouette": apart[layer]})
    return rows


def _triangle(pos: Tensor, neg: Tensor) -> dict[str, float]:
    """Cosines and norms of two centres and their difference."""
    points = torch.stack([pos, neg, pos - neg])
    between = cosines(points)
    norms = points.norm(dim=-1)
    return {
        "cos_means": between[0, 1].item(),
        "cos_pos_difference": between[0, 2].item(),
        "cos_neg_difference": between[1, 2].item(),
        "norm_pos": norms[0].item(),
        "norm_neg": norms[1].item(),
        "norm_difference": norms[2].item(),
    }


def _layers(rows: Rows) -> Float[Tensor, "every n d"]:
    return rows.reshape(-1, *rows.shape[-2:])
